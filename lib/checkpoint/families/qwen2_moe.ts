import { readDecoder } from '../decoder-spec.ts';
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

  decoder(config) {
    const slides = config.boolean('use_sliding_window', false);
    const window = slides ? config.positiveInteger('sliding_window') : 0;
    const firstSliding = slides ? config.nonNegativeInteger('max_window_layers') : 0;
    return readDecoder(config, { window: (layer) => (layer >= firstSliding ? window : 0) });
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
