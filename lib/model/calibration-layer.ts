import type { MoeBlock } from '../moe-block.ts';
import type { Routing } from '../routing.ts';
import type { Tensor } from '../tensor.ts';

/** A MoE layer with everything that reaches it on the calibration text. */
export interface CalibrationLayer {
  /** The decoder layer's index. */
  readonly layer: number;
  readonly block: MoeBlock;
  /** Inputs of the router and the experts [tokens, n]. Valid until the callback's promise settles, as is `routing`. */
  readonly x: Tensor<'f32'>;
  readonly routing: Routing;
}
