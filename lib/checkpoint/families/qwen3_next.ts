import type { Family } from '../family.ts';
import { describeQwenMoe } from './qwen_moe.ts';
import { qwenMoeTensors, qwenSharedExpertTensors } from './tensor-names.ts';

/** Qwen3-Next: `Qwen3NextForCausalLM` of transformers. Qwen2-MoE's layer, gated shared expert and all. */
export const qwen3Next: Family = {
  modelType: 'qwen3_next',
  ...qwenMoeTensors,

  describe(config) {
    const sizes = describeQwenMoe(config);
    const renormalize = config.boolean('norm_topk_prob', true); // the default differs from Qwen2-MoE's
    const intermediateSize = config.positiveInteger('shared_expert_intermediate_size');
    return {
      ...sizes,
      router: { ...sizes.router, renormalize },
      sharedExpert: { intermediateSize, gated: true },
    };
  },

  sharedExpertTensors: qwenSharedExpertTensors,
};
