import { readDecoder } from '../decoder-spec.ts';
import type { Family } from '../family.ts';
import { describeQwenMoe } from './qwen_moe.ts';
import { qwenMoeTensors, qwenSharedExpertTensors } from './tensor-names.ts';

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

  sharedExpertTensors: qwenSharedExpertTensors,
};
