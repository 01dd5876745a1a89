import type { MoeSpec } from '../checkpoint/family.ts';
import type { Device } from '../device.ts';
import type { Routing } from '../routing.ts';
import type { Tensor } from '../tensor.ts';
import type { CalibrationLayer } from './calibration-layer.ts';

interface Kept {
  readonly x: Float32Array;
  readonly ids: Int32Array;
  readonly weights: Float32Array;
}

/**
 * What reached the MoE layers in a pass over a part of a text, so that a pass over all of it need not take that part
 * through the model again. Lies in the host's memory: `keptInputBytes` of it, of which a layer's share goes when it is put back.
 */
export class KeptInputs {
  readonly #layers = new Map<number, Kept>();
  #tokens = 0;

  /** 0 as long as nothing is kept. */
  get tokens(): number {
    return this.#tokens;
  }

  /** Copies a layer's inputs, and where they are routed. */
  async keep({ layer, x, routing: { ids, weights } }: CalibrationLayer): Promise<void> {
    this.#layers.set(layer, { x: await x.read(), ids: await ids.read(), weights: await weights.read() });
    this.#tokens = x.shape[0] as number;
  }

  /** Fills `x` [tokens, n] with a layer's inputs, returns their routing, which belongs to the caller, and forgets both. */
  async putBack(layer: number, x: Tensor<'f32'>, device: Device): Promise<Routing> {
    const kept = this.#layers.get(layer);
    if (!kept) throw new Error(`nothing is kept of layer ${layer}`);
    this.#layers.delete(layer);
    await x.write(kept.x);
    const shape = [this.#tokens, kept.ids.length / this.#tokens];
    return {
      ids: device.tensor('i32', kept.ids, shape),
      weights: device.tensor('f32', kept.weights, shape),
    };
  }
}

/** Bytes of the inputs [tokens, n] of all MoE layers in f32, and of their routing [tokens, K] in i32 and f32. */
export function keptInputBytes(
  { hiddenSize, topK, layers }: Pick<MoeSpec, 'hiddenSize' | 'topK' | 'layers'>,
  tokens: number,
): number {
  return layers.length * tokens * (4 * hiddenSize + 8 * topK);
}
