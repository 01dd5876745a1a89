import type { Activation, Operator } from '../experts.ts';
import type { RouterSpec } from '../routing.ts';
import type { ModelConfig } from './config.ts';
import type { DecoderSpec } from './decoder-spec.ts';
import { badCheckpoint, quote, unsupportedCheckpoint } from './problems.ts';

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

/** By the names of transformers' `ACT2FN`. */
const ACTIVATIONS: ReadonlyMap<string, Activation> = new Map([
  ['silu', 'silu'],
  ['swish', 'silu'],
  ['gelu', 'gelu'],
  ['gelu_new', 'gelu_tanh'],
  ['gelu_pytorch_tanh', 'gelu_tanh'],
  ['relu2', 'relu2'],
]);

/** The activation that `hidden_act` names. */
export function readActivation(config: ModelConfig): Activation {
  const name = config.string('hidden_act');
  const activation = ACTIVATIONS.get(name);
  if (activation === undefined) {
    throw unsupportedCheckpoint(
      config.file,
      `hidden_act is ${quote(name)}; supported are ${[...ACTIVATIONS.keys()].join(', ')}`,
    );
  }
  return activation;
}

/** N by the names that families give it. */
export function readNumExperts(config: ModelConfig): number {
  return config.nonNegativeInteger('num_experts', 'num_local_experts', 'n_routed_experts');
}

/** K, which must not pass N. */
export function readTopK(config: ModelConfig, numExperts: number): number {
  const topK = config.positiveInteger('num_experts_per_tok');
  if (topK > numExperts && numExperts > 0) {
    throw badCheckpoint(config.file, `num_experts_per_tok is ${topK}, more than the ${numExperts} experts`);
  }
  return topK;
}

const MAX_LAYERS = 100_000;

/** 0, 1, … up to the last decoder layer. */
export function everyLayer(numLayers: number): number[] {
  return Array.from({ length: numLayers }, (_, layer) => layer);
}

/** The number of decoder layers, bounded because lists of that length are built from it. */
export function readNumLayers(config: ModelConfig): number {
  const numLayers = config.positiveInteger('num_hidden_layers');
  if (numLayers > MAX_LAYERS) {
    throw badCheckpoint(
      config.file,
      `num_hidden_layers is ${numLayers}; more than ${MAX_LAYERS} make no sense`,
    );
  }
  return numLayers;
}
