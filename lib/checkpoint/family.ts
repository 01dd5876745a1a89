import type { Activation } from '../experts.ts';
import type { Operator } from '../operators.ts';
import type { RouterSpec } from '../routing.ts';
import type { ModelConfig } from './config.ts';
import type { DecoderSpec } from './decoder-spec.ts';

/** The sizes of the MoE layers of a model; all of them alike. */
export interface MoeSpec {
  /** n: width of the residual stream. */
  readonly hiddenSize: number;
  /** m: width inside one routed expert. */
  readonly intermediateSize: number;
  /** N: routed experts in a layer. */
  readonly numExperts: number;
  /** K: experts per token. */
  readonly topK: number;
  readonly activation: Activation;
  /** Indices of the decoder layers that are MoE, ascending. */
  readonly layers: readonly number[];
  /** All decoder layers, dense ones included. */
  readonly numLayers: number;
  readonly router: RouterSpec;
  /** The expert that every token passes through; `gated`: its output is scaled by the sigmoid of a logit. */
  readonly sharedExpert?: { readonly intermediateSize: number; readonly gated: boolean };
}

/** The names of the tensors of a shared expert; `router` ([1, n]) only where it is gated. */
export interface SharedExpertTensors {
  readonly gate: string;
  readonly up: string;
  readonly down: string;
  readonly router?: string;
}

/** Where in a stored tensor an expert's matrix lies: consecutive elements from `elementOffset` on. */
export interface ExpertSlice {
  /** The shape of the whole stored tensor. */
  readonly shape: readonly number[];
  readonly elementOffset: number;
}

/**
 * What molae must know of a model family; one file implements it, and `families/index.ts` lists it. Expert
 * matrices are row-major [out, in]: gate and up [m, n], down [n, m].
 */
export interface Family {
  /** `model_type` of its config.json. */
  readonly modelType: string;
  /**
   * Reads the sizes off the config.
   *
   * @throws BAD_CHECKPOINT for a missing or senseless field, UNSUPPORTED_CHECKPOINT for an option molae lacks.
   */
  describe(config: ModelConfig): MoeSpec;
  /** The module that holds the experts of a layer, such as `model.layers.3.mlp`. */
  expertsPrefix(layer: number): string;
  /** The tensor that holds this matrix: of its own, or stacked with others where `expertSlice` says so. */
  expertTensor(layer: number, expert: number, operator: Operator): string;
  /** For families that store experts stacked or gate and up fused: where the matrix lies in `expertTensor`. */
  expertSlice?(spec: MoeSpec, expert: number, operator: Operator): ExpertSlice;
  /** The router's weight [N, n]. */
  routerTensor(layer: number): string;
  /** Of families whose router has one: the score-correction bias, [N] or [1, N]. */
  correctionBiasTensor?(layer: number): string;
  /**
   * What is needed to run the whole model; absent for families that molae converts but cannot run.
   *
   * @throws BAD_CHECKPOINT, UNSUPPORTED_CHECKPOINT as `describe` does.
   */
  decoder?(config: ModelConfig): DecoderSpec;
  /** Present exactly where the spec has a shared expert. */
  sharedExpertTensors?(layer: number): SharedExpertTensors;
}

/** Rows and columns of an expert's matrix, as stored: [out, in]. */
export function operatorShape(
  { hiddenSize, intermediateSize }: Pick<MoeSpec, 'hiddenSize' | 'intermediateSize'>,
  operator: Operator,
): readonly [number, number] {
  return operator === 'down' ? [hiddenSize, intermediateSize] : [intermediateSize, hiddenSize];
}

/** The tensor, its shape and the place in it of one expert's matrix, for any layout. */
export function locateExpert(
  family: Family,
  spec: MoeSpec,
  layer: number,
  expert: number,
  operator: Operator,
): ExpertSlice & { readonly name: string } {
  const name = family.expertTensor(layer, expert, operator);
  const slice = family.expertSlice?.(spec, expert, operator);
  return { name, ...(slice ?? { shape: operatorShape(spec, operator), elementOffset: 0 }) };
}
