import type { Family } from '../family.ts';
import { stackedSlice } from '../fused-layout.ts';
import { readSizes } from './read-sizes.ts';

/**
 * Granite 3 MoE: `GraniteMoeForCausalLM` of transformers. The experts of a layer are stacked: gate and up together in
 * `input_linear` [N, 2m, n], down in `output_linear` [N, n, m]. Top-k before softmax, which is the same as softmax with
 * renormalized top-k.
 */
export const graniteMoe: Family = {
  modelType: 'granitemoe',

  describe(config) {
    const sizes = readSizes(config, { intermediateSize: 'intermediate_size' });
    return { ...sizes, router: { scoring: 'softmax', topK: sizes.topK, renormalize: true } };
  },

  expertsPrefix: (layer) => `model.layers.${layer}.block_sparse_moe`,

  expertTensor(layer, _expert, operator) {
    const name = operator === 'down' ? 'output_linear' : 'input_linear';
    return `model.layers.${layer}.block_sparse_moe.${name}.weight`;
  },

  expertSlice: stackedSlice,

  routerTensor: (layer) => `model.layers.${layer}.block_sparse_moe.router.layer.weight`,
};
