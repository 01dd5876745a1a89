import { readDecoder } from '../decoder-spec.ts';
import type { Family } from '../family.ts';
import { readSizes } from './read-sizes.ts';
import { blockSparseTensors } from './tensor-names.ts';

/** Mixtral: `MixtralForCausalLM` of transformers. Softmax over all experts, then the best two by their share of the two. */
export const mixtral: Family = {
  modelType: 'mixtral',
  ...blockSparseTensors(),

  decoder(config) {
    const window = config.optionalPositiveInteger('sliding_window') ?? 0;
    return readDecoder(config, {
      window: () => window,
      defaults: { rmsNormEps: 1e-5, ropeTheta: 1_000_000 },
    });
  },

  describe(config) {
    const sizes = readSizes(config, { intermediateSize: 'intermediate_size' });
    return { ...sizes, router: { scoring: 'softmax', topK: sizes.topK, renormalize: true } };
  },
};
