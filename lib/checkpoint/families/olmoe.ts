import type { ModelConfig } from '../config.ts';
import { readDecoder } from '../decoder-spec.ts';
import type { Family, MoeSpec } from '../family.ts';
import { unsupportedCheckpoint } from '../problems.ts';
import { readSizes } from './read-sizes.ts';
import { qwenMoeTensors } from './tensor-names.ts';

/** OLMoE: `OlmoeForCausalLM` of transformers. Every layer is MoE; `intermediate_size` is the experts' own. */
export const olmoe: Family = {
  modelType: 'olmoe',
  ...qwenMoeTensors,
  describe: describeOlmoe,

  decoder(config) {
    if (config.has('clip_qkv'))
      throw unsupportedCheckpoint(config.file, 'clip_qkv: clipped attention inputs cannot be run');
    return readDecoder(config, { queryKeyNorm: 'all', defaults: { rmsNormEps: 1e-5 } });
  },
};

/** FlexOlmo: the same MoE layer in another decoder. */
export const flexOlmo: Family = { modelType: 'flex_olmo', ...qwenMoeTensors, describe: describeOlmoe };

function describeOlmoe(config: ModelConfig): MoeSpec {
  const sizes = readSizes(config, { intermediateSize: 'intermediate_size' });
  const renormalize = config.boolean('norm_topk_prob', false);
  return { ...sizes, router: { scoring: 'softmax', topK: sizes.topK, renormalize } };
}
