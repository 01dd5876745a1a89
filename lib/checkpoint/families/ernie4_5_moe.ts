import type { ModelConfig } from '../config.ts';
import type { Family } from '../family.ts';
import { unsupportedCheckpoint } from '../problems.ts';
import { readSizes } from './read-sizes.ts';
import { deepseekTensors } from './tensor-names.ts';

/** ERNIE 4.5 MoE, text: `Ernie4_5_MoeForCausalLM` of transformers. Softmax scores, chosen with a correction bias. */
export const ernie45Moe: Family = {
  modelType: 'ernie4_5_moe',
  ...deepseekTensors,

  describe(config) {
    if (config.boolean('use_bias', false)) {
      throw unsupportedCheckpoint(config.file, 'use_bias is true; experts with biases are not supported');
    }
    const sizes = readSizes(config, {
      intermediateSize: 'moe_intermediate_size',
      numExperts: 'moe_num_experts',
      topK: 'moe_k',
      sharedExperts: 'moe_num_shared_experts',
      isMoe,
    });
    return { ...sizes, router: { scoring: 'softmax', topK: sizes.topK, renormalize: true } };
  },

  correctionBiasTensor: (layer) => `model.layers.${layer}.mlp.moe_statics.e_score_correction_bias`,
};

/** Every `moe_layer_interval`-th layer, counted from one, from the start index to the end index (−1: the last layer). */
function isMoe(config: ModelConfig): (layer: number) => boolean {
  const first = config.optionalNonNegativeInteger('moe_layer_start_index') ?? 1;
  const end = config.number('moe_layer_end_index', -1);
  const last = end === -1 ? Number.POSITIVE_INFINITY : end;
  const interval = config.optionalPositiveInteger('moe_layer_interval') ?? 1;
  return (layer) => layer >= first && layer <= last && (layer + 1) % interval === 0;
}
