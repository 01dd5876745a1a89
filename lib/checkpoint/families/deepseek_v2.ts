import { readLatentAttentionDecoder } from '../decoder-spec.ts';
import type { Family } from '../family.ts';
import { quote, unsupportedCheckpoint } from '../problems.ts';
import { describeDeepseek, readGroupLimit } from './deepseek.ts';
import { deepseekTensors } from './tensor-names.ts';

/**
 * DeepSeek-V2 and V2-Lite: `DeepseekV2ForCausalLM` of transformers. Softmax scores times `routed_scaling_factor`, with
 * `group_limited_greedy` from the groups with the best experts.
 */
export const deepseekV2: Family = {
  modelType: 'deepseek_v2',
  ...deepseekTensors,

  decoder: (config) => readLatentAttentionDecoder(config, { neighbours: true }),

  describe(config) {
    const sizes = describeDeepseek(config);
    const method = config.optionalString('topk_method') ?? 'greedy';
    if (method !== 'greedy' && method !== 'group_limited_greedy') {
      throw unsupportedCheckpoint(
        config.file,
        `topk_method is ${quote(method)}; supported are greedy, group_limited_greedy`,
      );
    }
    const scoring = config.optionalString('scoring_func') ?? 'softmax';
    if (scoring !== 'softmax') {
      throw unsupportedCheckpoint(config.file, `scoring_func is ${quote(scoring)}; supported is softmax`);
    }
    // DeepSeek's own code renormalizes then (and does not scale), transformers ignores the field: one would be wrong.
    if (config.boolean('norm_topk_prob', false)) {
      throw unsupportedCheckpoint(
        config.file,
        'norm_topk_prob is true; its meaning in this family is disputed',
      );
    }
    return {
      ...sizes,
      router: {
        scoring: 'softmax',
        topK: sizes.topK,
        renormalize: false,
        scalingFactor: config.number('routed_scaling_factor', 1),
        groupLimit: method === 'greedy' ? undefined : readGroupLimit(config, sizes.numExperts, 'max'),
      },
    };
  },
};
