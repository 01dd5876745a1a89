import { readLatentAttentionDecoder } from '../decoder-spec.ts';
import type { Family } from '../family.ts';
import { quote, unsupportedCheckpoint } from '../problems.ts';
import { describeDeepseek, readSigmoidRouter } from './deepseek.ts';
import { sigmoidRouterTensors } from './tensor-names.ts';

/**
 * DeepSeek-V3, R1, V3.1 and Moonlight: `DeepseekV3ForCausalLM` of transformers. Layers past `num_hidden_layers`
 * (multi-token prediction) are no part of the model proper: they are copied as they are.
 */
export const deepseekV3: Family = {
  modelType: 'deepseek_v3',
  ...sigmoidRouterTensors,

  decoder: (config) =>
    readLatentAttentionDecoder(config, { neighbours: config.boolean('rope_interleave', true) }),

  describe(config) {
    for (const [field, wanted] of [
      ['topk_method', 'noaux_tc'],
      ['scoring_func', 'sigmoid'],
    ] as const) {
      const value = config.optionalString(field) ?? wanted;
      if (value !== wanted) {
        throw unsupportedCheckpoint(config.file, `${field} is ${quote(value)}; supported is ${wanted}`);
      }
    }
    const sizes = describeDeepseek(config);
    return { ...sizes, router: readSigmoidRouter(config, sizes, { renormalize: true, scalingFactor: 2.5 }) };
  },
};
