import type { Activation } from '../../experts.ts';
import type { ModelConfig } from '../config.ts';
import type { MoeSpec } from '../family.ts';
import { badCheckpoint, quote, unsupportedCheckpoint } from '../problems.ts';

/** What families choose differently, most of it the names of config fields. */
interface SizeFields {
  /** The width of a routed expert. */
  readonly intermediateSize: 'intermediate_size' | 'moe_intermediate_size';
  /** N; by default by any of the usual names. */
  readonly numExperts?: string;
  /** K */
  readonly topK?: string;
  /** The number of shared experts, which are stored as one that is as wide as all of them; left out: none. */
  readonly sharedExperts?: string;
  /** Which decoder layers of a model with experts have them; by default all. */
  readonly isMoe?: (config: ModelConfig) => (layer: number) => boolean;
}

/** The sizes of a family's MoE layers; the router is read by itself. */
export function readSizes(config: ModelConfig, fields: SizeFields): Omit<MoeSpec, 'router'> {
  const numExperts = readNumExperts(config, fields.numExperts);
  const numLayers = readNumLayers(config);
  const intermediateSize = config.positiveInteger(fields.intermediateSize);
  const sharedExperts =
    fields.sharedExperts === undefined ? 0 : (config.optionalNonNegativeInteger(fields.sharedExperts) ?? 0);
  const isMoe = numExperts === 0 ? () => false : (fields.isMoe?.(config) ?? (() => true));
  return {
    hiddenSize: config.positiveInteger('hidden_size'),
    intermediateSize,
    numExperts,
    topK: readTopK(config, numExperts, fields.topK),
    activation: readActivation(config),
    layers: everyLayer(numLayers).filter(isMoe),
    numLayers,
    ...(sharedExperts > 0 && {
      sharedExpert: { intermediateSize: sharedExperts * intermediateSize, gated: false },
    }),
  };
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
function readActivation(config: ModelConfig): Activation {
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
function readNumExperts(config: ModelConfig, field: string | undefined): number {
  return field === undefined
    ? config.nonNegativeInteger('num_experts', 'num_local_experts', 'n_routed_experts')
    : config.nonNegativeInteger(field);
}

/** K, which must not pass N. */
function readTopK(config: ModelConfig, numExperts: number, field = 'num_experts_per_tok'): number {
  const topK = config.positiveInteger(field);
  if (topK > numExperts && numExperts > 0) {
    throw badCheckpoint(config.file, `${field} is ${topK}, more than the ${numExperts} experts`);
  }
  return topK;
}

const MAX_LAYERS = 100_000;

/** 0, 1, … up to the last decoder layer. */
function everyLayer(numLayers: number): number[] {
  return Array.from({ length: numLayers }, (_, layer) => layer);
}

/** The number of decoder layers, bounded because lists of that length are built from it. */
function readNumLayers(config: ModelConfig): number {
  const numLayers = config.positiveInteger('num_hidden_layers');
  if (numLayers > MAX_LAYERS) {
    throw badCheckpoint(
      config.file,
      `num_hidden_layers is ${numLayers}; more than ${MAX_LAYERS} make no sense`,
    );
  }
  return numLayers;
}
