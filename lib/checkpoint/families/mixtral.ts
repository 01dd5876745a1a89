import type { Operator } from '../../experts.ts';
import type { ModelConfig } from '../config.ts';
import { readDecoder } from '../decoder-spec.ts';
import type { Family, MoeSpec } from '../family.ts';
import { everyLayer, readActivation, readNumExperts, readNumLayers, readTopK } from '../family.ts';

/** Mixtral: `MixtralForCausalLM` of transformers. Softmax over all experts, then the best two by their share of the two. */
export const mixtral: Family = {
  modelType: 'mixtral',
  ...blockSparseTensors(),
  decoder: (config) => readDecoder(config),
  describe(config) {
    const sizes = describeBlockSparse(config);
    return { ...sizes, router: { scoring: 'softmax', topK: sizes.topK, renormalize: true } };
  },
};

/** The sizes of Mixtral and of the families that took over its config; the router differs. */
export function describeBlockSparse(config: ModelConfig): Omit<MoeSpec, 'router'> {
  const numExperts = readNumExperts(config);
  const numLayers = readNumLayers(config);
  return {
    hiddenSize: config.positiveInteger('hidden_size'),
    intermediateSize: config.positiveInteger('intermediate_size'),
    numExperts,
    topK: readTopK(config, numExperts),
    activation: readActivation(config),
    layers: numExperts === 0 ? [] : everyLayer(numLayers),
    numLayers,
  };
}

/** Mixtral's tensor names: w1 is gate, w3 up, w2 down. */
export function blockSparseTensors() {
  const names: Record<Operator, string> = { gate: 'w1', up: 'w3', down: 'w2' };
  const prefix = (layer: number) => `model.layers.${layer}.block_sparse_moe`;
  return {
    expertsPrefix: prefix,
    expertTensor: (layer: number, expert: number, operator: Operator) =>
      `${prefix(layer)}.experts.${expert}.${names[operator]}.weight`,
    routerTensor: (layer: number) => `${prefix(layer)}.gate.weight`,
  };
}
