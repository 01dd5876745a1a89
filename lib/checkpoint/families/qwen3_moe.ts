import { readDecoder } from '../decoder-spec.ts';
import type { Family } from '../family.ts';
import { describeQwenMoe, slidingWindow } from './qwen_moe.ts';
import { qwenMoeTensors } from './tensor-names.ts';

/** Qwen3-MoE (Qwen3-30B-A3B, Qwen3-235B-A22B, …): `Qwen3MoeForCausalLM` of transformers. No shared expert. */
export const qwen3Moe: Family = {
  modelType: 'qwen3_moe',
  ...qwenMoeTensors,
  describe: describeQwenMoe,

  decoder(config) {
    const window = slidingWindow(config);
    return readDecoder(config, { queryKeyNorm: 'head', window: () => window });
  },
};
