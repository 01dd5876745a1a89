import type { Experts } from '../experts.ts';
import type { CalibrationLayer } from '../model/calibration-layer.ts';
import type { Model } from '../model/model.ts';
import { MoeBlock } from '../moe-block.ts';

/** What a method may keep, and on what it may look. */
export interface MethodRequest {
  readonly model: Model;
  /** Token ids of the calibration text, which methods that see only weights ignore. */
  readonly calibration: ArrayLike<number>;
  /** Tokens that attend to each other in it. */
  readonly window?: number | undefined;
  /** The share of the routed experts' parameters to remove, at least. Quantization ignores it: its width is in its name. */
  readonly targetRatio: number;
  /** k, for methods that group experts; by default their own choice. */
  readonly groupSize?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** A way to compress the routed experts of a model: one file for each. */
export interface Method {
  readonly name: string;
  readonly summary: string;
  /** Experts share something in groups: `groupSize` matters. */
  readonly grouped: boolean;
  /** Sees only weights: it gets the layers without a pass over the calibration text. */
  readonly weightsOnly?: boolean;
  /** What it keeps is given with its name (bits a weight): `targetRatio` does not matter. */
  readonly ownWidth?: boolean;
  /**
   * Says before any work what cannot be done.
   *
   * @throws MolaeError `INVALID_ARGUMENT` for a target that cannot be met, a k that does not divide N.
   */
  check(request: MethodRequest): void;
  /** Looks at the whole model where it must (latent sizes of all layers), before any layer is compressed. */
  prepare(request: MethodRequest): Promise<Compressor>;
}

/** A method at work on one model. */
export interface Compressor {
  /** The k that was chosen, for methods that group. */
  readonly groupSize?: number | undefined;
  compress(layer: CalibrationLayer): Promise<CompressedLayer>;
}

/** What the routed experts of a layer cost. */
export interface ExpertCosts {
  /** Elements that would be stored of the routed experts. */
  readonly expertParameters: number;
  /** Bytes that they would take, with scales of quantized blocks. */
  readonly expertBytes: number;
  /** Of the routed experts, under uniform routing, a multiply-add counted as two. */
  readonly flopsPerToken: number;
}

/** What stands in for a layer's experts. */
export interface CompressedLayer extends ExpertCosts {
  readonly block: MoeBlock;
  /** Frees what was made for it; the original layer stays. */
  dispose(): void;
}

/** The layer with other experts behind its own router. */
export function withExperts(
  { block }: CalibrationLayer,
  experts: Experts,
  costs: ExpertCosts,
): CompressedLayer {
  const { router, spec, correctionBias } = block;
  return {
    block: new MoeBlock({ router, spec, correctionBias, experts }),
    ...costs,
    dispose: () => experts.dispose(),
  };
}
