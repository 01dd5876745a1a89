import type { Family } from '../family.ts';
import { describeQwenMoe, qwenMoeTensors } from './qwen_moe.ts';

/** Qwen1.5-MoE and Qwen2-MoE: `Qwen2MoeForCausalLM` of transformers. */
export const qwen2Moe: Family = {
  modelType: 'qwen2_moe',
  ...qwenMoeTensors,

  describe(config) {
    const intermediateSize = config.positiveInteger('shared_expert_intermediate_size');
    return { ...describeQwenMoe(config), sharedExpert: { intermediateSize, gated: true } };
  },

  sharedExpertTensors(layer) {
    const prefix = `model.layers.${layer}.mlp`;
    return {
      gate: `${prefix}.shared_expert.gate_proj.weight`,
      up: `${prefix}.shared_expert.up_proj.weight`,
      down: `${prefix}.shared_expert.down_proj.weight`,
      router: `${prefix}.shared_expert_gate.weight`,
    };
  },
};
