import type { GroupLimit, RouterSpec } from '../../routing.ts';
import type { ModelConfig } from '../config.ts';
import type { MoeSpec, SharedExpertTensors } from '../family.ts';
import { everyLayer, readActivation, readNumExperts, readNumLayers, readTopK } from '../family.ts';
import { badCheckpoint } from '../problems.ts';
import { qwenMoeTensors } from './qwen_moe.ts';

/** The sizes of DeepSeek's MoE layers and of the families that took over its config; the router differs. */
export function describeDeepseek(config: ModelConfig): Omit<MoeSpec, 'router'> {
  const numExperts = readNumExperts(config);
  const numLayers = readNumLayers(config);
  const intermediateSize = config.positiveInteger('moe_intermediate_size');
  const firstMoe = config.has('first_k_dense_replace')
    ? config.nonNegativeInteger('first_k_dense_replace')
    : 0;
  const step = config.optionalPositiveInteger('moe_layer_freq') ?? 1;
  const sharedExperts = config.has('n_shared_experts') ? config.nonNegativeInteger('n_shared_experts') : 0;
  return {
    hiddenSize: config.positiveInteger('hidden_size'),
    intermediateSize,
    numExperts,
    topK: readTopK(config, numExperts),
    activation: readActivation(config),
    layers:
      numExperts === 0
        ? []
        : everyLayer(numLayers).filter((layer) => layer >= firstMoe && layer % step === 0),
    numLayers,
    // Several shared experts are stored as one that is as wide as all of them.
    ...(sharedExperts > 0 && {
      sharedExpert: { intermediateSize: sharedExperts * intermediateSize, gated: false },
    }),
  };
}

/** `n_group` and `topk_group`; undefined where they limit nothing. */
export function readGroupLimit(
  config: ModelConfig,
  numExperts: number,
  score: GroupLimit['score'],
): GroupLimit | undefined {
  const numGroups = config.optionalPositiveInteger('n_group') ?? 1;
  const chosenGroups = config.optionalPositiveInteger('topk_group') ?? numGroups;
  if (chosenGroups > numGroups || numExperts % numGroups !== 0) {
    throw badCheckpoint(
      config.file,
      `n_group ${numGroups} and topk_group ${chosenGroups} do not fit ${numExperts} experts`,
    );
  }
  return numGroups === 1 ? undefined : { numGroups, chosenGroups, score };
}

/**
 * The router of DeepSeek-V3 (`noaux_tc`): sigmoid scores, chosen with a bias, groups by the sum of their best two.
 *
 * @param defaults of the fields that families disagree on.
 */
export function readSigmoidRouter(
  config: ModelConfig,
  { numExperts, topK }: Pick<MoeSpec, 'numExperts' | 'topK'>,
  defaults: { readonly renormalize: boolean; readonly scalingFactor: number },
): RouterSpec {
  return {
    scoring: 'sigmoid',
    topK,
    renormalize: config.boolean('norm_topk_prob', defaults.renormalize),
    scalingFactor: config.number('routed_scaling_factor', defaults.scalingFactor),
    groupLimit: readGroupLimit(config, numExperts, 'top2'),
  };
}

/** Tensor names of DeepSeek's MoE layers. */
export const deepseekTensors = {
  ...qwenMoeTensors,
  sharedExpertTensors(layer: number): SharedExpertTensors {
    const prefix = `model.layers.${layer}.mlp.shared_experts`;
    return {
      gate: `${prefix}.gate_proj.weight`,
      up: `${prefix}.up_proj.weight`,
      down: `${prefix}.down_proj.weight`,
    };
  },
};

/** Of the families with the router of DeepSeek-V3. */
export const sigmoidRouterTensors = {
  ...deepseekTensors,
  correctionBiasTensor: (layer: number) => `model.layers.${layer}.mlp.gate.e_score_correction_bias`,
};
