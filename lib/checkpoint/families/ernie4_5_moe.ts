import type { ModelConfig } from '../config.ts';
import type { Family } from '../family.ts';
import { everyLayer, readActivation, readNumLayers } from '../family.ts';
import { badCheckpoint, unsupportedCheckpoint } from '../problems.ts';
import { deepseekTensors } from './deepseek.ts';

/** ERNIE 4.5 MoE, text: `Ernie4_5_MoeForCausalLM` of transformers. Softmax scores, chosen with a correction bias. */
export const ernie45Moe: Family = {
  modelType: 'ernie4_5_moe',
  ...deepseekTensors,

  describe(config) {
    if (config.boolean('use_bias', false)) {
      throw unsupportedCheckpoint(config.file, 'use_bias is true; experts with biases are not supported');
    }
    const numExperts = config.nonNegativeInteger('moe_num_experts');
    const topK = config.positiveInteger('moe_k');
    if (topK > numExperts && numExperts > 0) {
      throw badCheckpoint(config.file, `moe_k is ${topK}, more than the ${numExperts} experts`);
    }
    const intermediateSize = config.positiveInteger('moe_intermediate_size');
    const shared = config.has('moe_num_shared_experts')
      ? config.nonNegativeInteger('moe_num_shared_experts')
      : 0;
    return {
      hiddenSize: config.positiveInteger('hidden_size'),
      intermediateSize,
      numExperts,
      topK,
      activation: readActivation(config),
      layers: numExperts === 0 ? [] : moeLayers(config),
      numLayers: readNumLayers(config),
      router: { scoring: 'softmax', topK, renormalize: true },
      ...(shared > 0 && { sharedExpert: { intermediateSize: shared * intermediateSize, gated: false } }),
    };
  },

  correctionBiasTensor: (layer) => `model.layers.${layer}.mlp.moe_statics.e_score_correction_bias`,
};

/** Every `moe_layer_interval`-th layer, counted from one, from the start index to the end index (−1: the last layer). */
function moeLayers(config: ModelConfig): number[] {
  const first = config.has('moe_layer_start_index') ? config.nonNegativeInteger('moe_layer_start_index') : 1;
  const end = config.number('moe_layer_end_index', -1);
  const last = end === -1 ? Number.POSITIVE_INFINITY : end;
  const interval = config.optionalPositiveInteger('moe_layer_interval') ?? 1;
  return everyLayer(readNumLayers(config)).filter(
    (layer) => layer >= first && layer <= last && (layer + 1) % interval === 0,
  );
}
