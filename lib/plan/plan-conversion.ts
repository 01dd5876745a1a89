import { describeConfig } from '../checkpoint/families/index.ts';
import type { MoeSpec } from '../checkpoint/family.ts';
import { isJsonObject, type JsonObject } from '../checkpoint/json.ts';
import { distinctGroups } from '../costs/distinct-groups.ts';
import { type Comparison, type Costs, compare, layerCosts } from '../costs/layer-costs.ts';
import { checkSizes } from '../costs/sizes.ts';
import { expected } from '../errors.ts';
import type { Operator } from '../operators.ts';
import { completeSizes } from './complete-sizes.ts';
import { checkPlanOptions, factorization, type PlanOptions } from './request.ts';

/** A conversion's sizes and costs; the costs are sums over all MoE layers. */
export interface ConversionPlan extends Costs {
  readonly groupSize: number;
  readonly numGroups: number;
  readonly latentSize: number;
  readonly operators: readonly Operator[];
  readonly sharedGateUp: boolean;
  /** E: distinct groups a token, on average. */
  readonly distinctGroups: number;
  readonly moeLayers: readonly number[];
  /** Whether the planner chose the group size. */
  readonly groupSizeChosen: boolean;
  /** How the sizes came about, in a sentence for people. */
  readonly reason: string;
  /** The whole model, where `otherParameters` was given. */
  readonly parameters?: Comparison;
  /** The same costs for one layer. */
  readonly perLayer: Costs;
}

/**
 * Plans a conversion before any work: completes the sizes and tells the costs.
 *
 * - `targetRatio` takes the largest r that removes at least this share of the routed experts' parameters, rounded
 *   down to a multiple of 16 (from 16 on), the width of the kernels' tiles.
 * - With neither `latentSize` nor `targetRatio`, r = min(m, n), the paper's choice.
 * - Without `groupSize` the planner chooses one by sizes alone; `reason` says how.
 *
 * @param model the sizes, or the object in a config.json of a supported family.
 * @throws INVALID_ARGUMENT for options that do not fit the model or each other, UNSUPPORTED_CHECKPOINT for a config of
 *   an unknown family.
 */
export function planConversion(model: MoeSpec | JsonObject, options: PlanOptions = {}): ConversionPlan {
  const spec = isSpec(model) ? model : describeConfig(model);
  checkSizes(spec);
  if (!Array.isArray(spec.layers)) throw expected('an array of layers', 'layers', spec.layers);
  const request = checkPlanOptions(spec, options);
  const { groupSize, latentSize, reason } = completeSizes(spec, request);
  const costs = (k: number, r: number) => layerCosts(spec, factorization(spec, request, k, r), options);
  const perLayer = costs(groupSize, latentSize);
  const total = sumOverLayers(perLayer, spec.layers.length);
  const { expertParameters } = total;
  const others = options.otherParameters;
  return {
    groupSize,
    numGroups: spec.numExperts / groupSize,
    latentSize,
    operators: request.operators,
    sharedGateUp: request.sharedGateUp,
    distinctGroups: meanDistinctGroups(spec, groupSize, options.groupProbabilities),
    moeLayers: spec.layers,
    groupSizeChosen: request.groupSize === undefined,
    reason,
    ...total,
    ...(others === undefined
      ? {}
      : { parameters: compare(others + expertParameters.dense, others + expertParameters.latent) }),
    perLayer,
  };
}

function meanDistinctGroups(
  spec: MoeSpec,
  groupSize: number,
  measured: readonly number[] | undefined,
): number {
  if (measured !== undefined) return measured.reduce((total, probability) => total + probability, 0);
  return distinctGroups(spec.numExperts, groupSize, spec.topK);
}

function sumOverLayers(perLayer: Costs, layers: number): Costs {
  const times = ({ dense, latent, ratio }: Comparison) => ({
    dense: dense * layers,
    latent: latent * layers,
    ratio,
  });
  return {
    expertParameters: times(perLayer.expertParameters),
    flopsPerToken: times(perLayer.flopsPerToken),
    weightBytesPerToken: times(perLayer.weightBytesPerToken),
    weightBytesPerBatch: times(perLayer.weightBytesPerBatch),
    allToAllBytesPerToken: times(perLayer.allToAllBytesPerToken),
  };
}

function isSpec(model: MoeSpec | JsonObject): model is MoeSpec {
  if (!isJsonObject(model)) throw expected('a MoeSpec or the object of a config.json', 'model', model);
  return 'numExperts' in model && 'layers' in model;
}
