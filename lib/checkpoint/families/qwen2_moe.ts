import type { ModelConfig } from '../config.ts';
import { readDecoder } from '../decoder-spec.ts';
import type { Family } from '../family.ts';
import { badCheckpoint, quote, unsupportedCheckpoint } from '../problems.ts';
import { describeQwenMoe, slidingWindow } from './qwen_moe.ts';
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
    const window = slidingWindow(config);
    const isSliding = slidingLayers(config, window > 0);
    return readDecoder(config, { window: (layer) => (isSliding(layer) ? window : 0) });
  },

  sharedExpertTensors: qwenSharedExpertTensors,
};

/** The layers that `layer_types` lists; where there is no list, as transformers makes it: every other one up to `max_window_layers`. */
function slidingLayers(config: ModelConfig, slides: boolean): (layer: number) => boolean {
  const types = config.optionalStringList('layer_types');
  if (types === undefined) {
    const end = slides ? (config.optionalNonNegativeInteger('max_window_layers') ?? 28) : 0;
    return (layer) => layer < end && layer % 2 === 0;
  }
  const numLayers = config.positiveInteger('num_hidden_layers');
  if (types.length !== numLayers) {
    throw badCheckpoint(config.file, `layer_types has ${types.length} entries for ${numLayers} layers`);
  }
  for (const type of types) {
    if (type !== FULL && type !== SLIDING) {
      throw unsupportedCheckpoint(
        config.file,
        `layer_types has ${quote(type)}; supported are ${FULL}, ${SLIDING}`,
      );
    }
    if (type === SLIDING && !slides) {
      throw badCheckpoint(
        config.file,
        `layer_types has ${SLIDING}, but there is no window: use_sliding_window is not true, or sliding_window null`,
      );
    }
  }
  return (layer) => types[layer] === SLIDING;
}

const FULL = 'full_attention';
const SLIDING = 'sliding_attention';
