import type { Attention, DecoderSpec } from '../checkpoint/decoder-spec.ts';
import type { Device } from '../device.ts';
import { MolaeError } from '../errors.ts';
import type { Tensor } from '../tensor.ts';
import { Turns } from './turns.ts';

/** What one layer keeps of each position so far: a row in each of some matrices. */
export class LayerCache {
  readonly #blocks: readonly Tensor[];
  #length = 0;

  constructor(device: Device, capacity: number, widths: readonly number[]) {
    this.#blocks = widths.map((width) => device.empty('f32', [capacity, width]));
  }

  get length(): number {
    return this.#length;
  }

  /** Makes room for `tokens` more rows: views of the new rows of each matrix, to be filled, and of all rows up to them. */
  append(tokens: number): { added: Tensor[]; all: Tensor[] } {
    const begin = this.#length;
    const end = begin + tokens;
    this.#length = end;
    return {
      added: this.#blocks.map((block) => block.rows(begin, end)),
      all: this.#blocks.map((block) => block.rows(0, end)),
    };
  }

  /** Forgets all rows but the first `length`. */
  truncate(length: number): void {
    this.#length = Math.min(this.#length, length);
  }

  get byteLength(): number {
    return this.#blocks.reduce((sum, block) => sum + block.byteLength, 0);
  }

  dispose(): void {
    for (const block of this.#blocks) block.dispose();
  }
}

/** Elements that a layer caches of a position: keys and values, or the latent vector and the rotated part of the keys. */
function cachedWidths(attention: Attention): number[] {
  const { kvHeads, headSize, valueSize } = attention;
  return attention.kind === 'latent'
    ? [attention.kvLatentSize + headSize - attention.plainSize]
    : [kvHeads * headSize, kvHeads * valueSize];
}

/** What all layers keep of one sequence. */
export class KeyValueCache {
  /** The longest sequence it can hold. */
  readonly capacity: number;
  /** @internal */
  readonly layers: readonly LayerCache[];
  readonly #turns = new Turns();

  /** @internal Use `Model.newCache`. */
  constructor(device: Device, spec: DecoderSpec, capacity: number) {
    const widths = cachedWidths(spec.attention);
    this.capacity = capacity;
    this.layers = Array.from({ length: spec.numLayers }, () => new LayerCache(device, capacity, widths));
  }

  /** Tokens in it. */
  get length(): number {
    return this.layers[0]?.length ?? 0;
  }

  /** Bytes of device memory, for all of its capacity. */
  get byteLength(): number {
    return this.layers.reduce((sum, layer) => sum + layer.byteLength, 0);
  }

  /**
   * @internal Runs `append`, which adds `tokens` rows to every layer, when the calls before it are done.
   *
   * @throws MolaeError `INVALID_ARGUMENT` where they do not fit; what `append` throws, with the rows that it added forgotten.
   */
  extend<Result>(
    tokens: number,
    signal: AbortSignal | undefined,
    append: () => Promise<Result>,
  ): Promise<Result> {
    return this.#turns.take(signal, async () => {
      const before = this.length;
      if (before + tokens > this.capacity) {
        throw new MolaeError(
          'INVALID_ARGUMENT',
          `The sequence of ${before + tokens} tokens is longer than the ${this.capacity} there is room for`,
        );
      }
      try {
        return await append();
      } catch (error) {
        for (const layer of this.layers) layer.truncate(before);
        throw error;
      }
    });
  }

  dispose(): void {
    for (const layer of this.layers) layer.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
