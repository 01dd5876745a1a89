import type { Family } from '../family.ts';
import { unsupportedCheckpoint } from '../problems.ts';
import { readSizes } from './read-sizes.ts';
import { blockSparseTensors } from './tensor-names.ts';

/** Phi-3.5-MoE: `PhimoeForCausalLM` of transformers. Mixtral's names and sizes, SparseMixer routing, always two experts. */
export const phimoe: Family = {
  modelType: 'phimoe',
  ...blockSparseTensors(),
  describe(config) {
    const sizes = readSizes(config, { intermediateSize: 'intermediate_size' });
    if (sizes.topK !== 2) {
      throw unsupportedCheckpoint(
        config.file,
        `num_experts_per_tok is ${sizes.topK}; SparseMixer is defined for 2 experts`,
      );
    }
    const jitter = config.number('router_jitter_noise', 0.01);
    return {
      ...sizes,
      router: { scoring: 'sparsemixer', topK: sizes.topK, renormalize: false, jitter },
    };
  },
};
