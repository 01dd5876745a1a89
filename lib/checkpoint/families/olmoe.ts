import type { ModelConfig } from '../config.ts';
import { readDecoder } from '../decoder-spec.ts';
import type { Family, MoeSpec } from '../family.ts';
import { everyLayer, readActivation, readNumExperts, readNumLayers, readTopK } from '../family.ts';
import { unsupportedCheckpoint } from '../problems.ts';
import { qwenMoeTensors } from './qwen_moe.ts';

/** OLMoE: `OlmoeForCausalLM` of transformers. Every layer is MoE; `intermediate_size` is the experts' own. */
export const olmoe: Family = {
  modelType: 'olmoe',
  ...qwenMoeTensors,
  describe: describeOlmoe,

  decoder(config) {
    if (config.has('clip_qkv'))
      throw unsupportedCheckpoint(config.file, 'clip_qkv: clipped attention inputs cannot be run');
    return readDecoder(config, { queryKeyNorm: 'all' });
  },
};

/** FlexOlmo: the same MoE layer in another decoder. */
export const flexOlmo: Family = { modelType: 'flex_olmo', ...qwenMoeTensors, describe: describeOlmoe };

function describeOlmoe(config: ModelConfig): MoeSpec {
  const numExperts = readNumExperts(config);
  const numLayers = readNumLayers(config);
  const topK = readTopK(config, numExperts);
  return {
    hiddenSize: config.positiveInteger('hidden_size'),
    intermediateSize: config.positiveInteger('intermediate_size'),
    numExperts,
    topK,
    activation: readActivation(config),
    layers: numExperts === 0 ? [] : everyLayer(numLayers),
    numLayers,
    router: { scoring: 'softmax', topK, renormalize: config.boolean('norm_topk_prob', false) },
  };
}
