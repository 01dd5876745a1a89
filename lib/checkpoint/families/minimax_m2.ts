import type { Family } from '../family.ts';
import { readSizes } from './read-sizes.ts';
import { blockSparseTensors } from './tensor-names.ts';

/** MiniMax-M2: `MiniMaxM2ForCausalLM` of transformers. Mixtral's names and sizes, sigmoid scores with a correction bias. */
export const minimaxM2: Family = {
  modelType: 'minimax_m2',
  ...blockSparseTensors(),
  describe(config) {
    const sizes = readSizes(config, { intermediateSize: 'intermediate_size' });
    return { ...sizes, router: { scoring: 'sigmoid', topK: sizes.topK, renormalize: true } };
  },
  correctionBiasTensor: (layer) => `model.layers.${layer}.block_sparse_moe.e_score_correction_bias`,
};
