import type { ModelConfig } from '../config.ts';
import type { Family, MoeSpec } from '../family.ts';
import { describeDeepseek, readSigmoidRouter } from './deepseek.ts';
import { sigmoidRouterTensors } from './tensor-names.ts';

/** GLM-4.5, 4.6 and their Air versions: `Glm4MoeForCausalLM` of transformers. DeepSeek-V3's MoE layer in another decoder. */
export const glm4Moe: Family = {
  modelType: 'glm4_moe',
  ...sigmoidRouterTensors,
  describe: (config) => describeWith(config, true),
};

/** dots.llm1: `Dots1ForCausalLM` of transformers, the same again. */
export const dots1: Family = {
  modelType: 'dots1',
  ...sigmoidRouterTensors,
  describe: (config) => describeWith(config, false),
};

function describeWith(config: ModelConfig, renormalize: boolean): MoeSpec {
  const sizes = describeDeepseek(config);
  return { ...sizes, router: readSigmoidRouter(config, sizes, { renormalize, scalingFactor: 1 }) };
}
