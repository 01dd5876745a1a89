import type { GroupLimit, RouterSpec } from '../../routing.ts';
import type { ModelConfig } from '../config.ts';
import type { MoeSpec } from '../family.ts';
import { badCheckpoint } from '../problems.ts';
import { readSizes } from './read-sizes.ts';

/** The sizes of DeepSeek's MoE layers and of the families that took over its config; the router differs. */
export function describeDeepseek(config: ModelConfig): Omit<MoeSpec, 'router'> {
  return readSizes(config, {
    intermediateSize: 'moe_intermediate_size',
    sharedExperts: 'n_shared_experts',
    isMoe,
  });
}

/** Every `moe_layer_freq`-th layer, after the first `first_k_dense_replace`. */
function isMoe(config: ModelConfig): (layer: number) => boolean {
  const first = config.optionalNonNegativeInteger('first_k_dense_replace') ?? 0;
  const step = config.optionalPositiveInteger('moe_layer_freq') ?? 1;
  return (layer) => layer >= first && layer % step === 0;
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
