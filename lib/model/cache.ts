import type { DecoderSpec } from '../checkpoint/decoder-spec.ts';
import type { Device } from '../device.ts';
import { MolaeError } from '../errors.ts';
import type { Tensor } from '../tensor.ts';

/** The keys and values of one layer: rows for all positions so far. */
export class LayerCache {
  readonly #keys: Tensor;
  readonly #values: Tensor;
  #length = 0;

  constructor(device: Device, capacity: number, keyWidth: number, valueWidth: number) {
    this.#keys = device.empty('f32', [capacity, keyWidth]);
    this.#values = device.empty('f32', [capacity, valueWidth]);
  }

  /** Makes room for `tokens` more rows: views of the new rows, to be filled, and of all rows up to them. */
  append(tokens: number): { newKeys: Tensor; newValues: Tensor; keys: Tensor; values: Tensor } {
    const begin = this.#length;
    const end = begin + tokens;
    const views = {
      newKeys: this.#keys.rows(begin, end),
      newValues: this.#values.rows(begin, end),
      keys: this.#keys.rows(0, end),
      values: this.#values.rows(0, end),
    };
    this.#length = end;
    return views;
  }

  dispose(): void {
    this.#keys.dispose();
    this.#values.dispose();
  }
}

/** The keys and values of one sequence, in all layers. */
export class KeyValueCache {
  /** The longest sequence it can hold. */
  readonly capacity: number;
  readonly layers: readonly LayerCache[];
  #length = 0;

  constructor(device: Device, spec: DecoderSpec, capacity: number) {
    const { kvHeads, headSize, valueSize } = spec.attention;
    this.capacity = capacity;
    this.layers = Array.from(
      { length: spec.numLayers },
      () => new LayerCache(device, capacity, kvHeads * headSize, kvHeads * valueSize),
    );
  }

  /** Tokens in it. */
  get length(): number {
    return this.#length;
  }

  /** Counts `tokens` more; throws `INVALID_ARGUMENT` where they do not fit. */
  reserve(tokens: number): void {
    if (this.#length + tokens > this.capacity) {
      throw new MolaeError(
        'INVALID_ARGUMENT',
        `The sequence of ${this.#length + tokens} tokens is longer than the ${this.capacity} there is room for`,
      );
    }
    this.#length += tokens;
  }

  dispose(): void {
    for (const layer of this.layers) layer.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
