import type { MoeSpec } from '../../checkpoint/family.ts';
import { distinctGroups } from '../../costs/distinct-groups.ts';
import {
  type Comparison,
  type Costs,
  compare,
  type Factorization,
  layerCosts,
} from '../../costs/layer-costs.ts';
import { BLOCK, byteCount } from '../../dtype.ts';
import { consecutiveGroups } from '../../factorization/groups.ts';
import type { CalibrationLayer } from '../../model/calibration-layer.ts';
import { groupProbabilities, groupRouting } from '../../model/routing-statistics.ts';
import type { Operator } from '../../operators.ts';
import type { FactorShapes } from '../layer-method.ts';

/** How tokens of the calibration text use the groups, and what that costs: routed experts, sums over all MoE layers. */
export interface GroupUseReport {
  readonly tokens: number;
  /** Groups that a token's experts are in: the mean over MoE layers. */
  readonly distinctGroups: {
    readonly measured: number;
    /** By the same routing, were experts grouped in the order of their numbers. */
    readonly consecutive: number;
    /** Were all sets of K experts equally likely, as plans assume. */
    readonly uniform: number;
  };
  readonly flopsPerToken: Comparison;
  readonly weightBytesPerToken: Comparison;
  /** With each group on another device and B applied at the source; elements as wide as the source's. */
  readonly allToAllBytesPerToken: Comparison;
}

interface LayerUse extends Pick<Costs, 'flopsPerToken' | 'weightBytesPerToken' | 'allToAllBytesPerToken'> {
  readonly measured: number;
  readonly consecutive: number;
}

/** Counts how the tokens of a pass over the layers use the groups. */
export class GroupUseCounter {
  readonly #spec: MoeSpec;
  readonly #shapes: FactorShapes;
  readonly #sourceBytes: (layer: number) => number;
  readonly #layers: LayerUse[] = [];
  #tokens = 0;

  /** @param sourceBytes of one element of a layer's experts as they were. */
  constructor(spec: MoeSpec, shapes: FactorShapes, sourceBytes: (layer: number) => number) {
    this.#spec = spec;
    this.#shapes = shapes;
    this.#sourceBytes = sourceBytes;
  }

  async count({ layer, routing }: CalibrationLayer): Promise<void> {
    const { numExperts } = this.#spec;
    const groups = this.#shapes.groups(layer);
    const inOrder = consecutiveGroups(numExperts, numExperts / groups.length);
    const measured = await groupRouting(routing, groups);
    const bytesPerParameter = this.#sourceBytes(layer);
    const costs = layerCosts(this.#spec, this.#factorization(layer), { bytesPerParameter, ...measured });
    this.#tokens = routing.ids.shape[0] as number;
    this.#layers.push({
      ...costs,
      weightBytesPerToken: this.#weightBytes(costs, bytesPerParameter),
      measured: sum(measured.groupProbabilities),
      consecutive: sum(await groupProbabilities(routing, inOrder)),
    });
  }

  /** Undefined unless every layer was counted. */
  get report(): GroupUseReport | undefined {
    const layers = this.#layers;
    const { numExperts, topK, layers: moeLayers } = this.#spec;
    if (layers.length < moeLayers.length) return undefined;
    const total = (cost: 'flopsPerToken' | 'weightBytesPerToken' | 'allToAllBytesPerToken') =>
      compare(sum(layers.map((own) => own[cost].dense)), sum(layers.map((own) => own[cost].latent)));
    const groupSize = numExperts / this.#shapes.groups(moeLayers[0] as number).length;
    return {
      tokens: this.#tokens,
      distinctGroups: {
        measured: sum(layers.map((own) => own.measured)) / layers.length,
        consecutive: sum(layers.map((own) => own.consecutive)) / layers.length,
        uniform: distinctGroups(numExperts, groupSize, topK),
      },
      flopsPerToken: total('flopsPerToken'),
      weightBytesPerToken: total('weightBytesPerToken'),
      allToAllBytesPerToken: total('allToAllBytesPerToken'),
    };
  }

  #factorization(layer: number): Factorization {
    const { operators, sharedGateUp } = this.#shapes;
    const groups = this.#shapes.groups(layer);
    const sizesOf = (operator: Operator) =>
      groups.map((_, group) => this.#shapes.latentSize(layer, operator, group));
    const latentSizes = Object.fromEntries(operators.map((operator) => [operator, sizesOf(operator)]));
    return { groupSizes: groups.map(({ length }) => length), latentSizes, sharedGateUp };
  }

  /** With factors in blocks: rows are filled up to whole ones, which is not counted. Dense operators stay as they were. */
  #weightBytes({ weightBytesPerToken }: Costs, sourceBytes: number): Comparison {
    const { quantization, operators } = this.#shapes;
    const { dense, latent } = weightBytesPerToken;
    if (quantization === undefined) return weightBytesPerToken;
    const left = (1 - operators.length / 3) * dense;
    const factorBytes = byteCount(quantization, [BLOCK]) / BLOCK;
    return compare(dense, left + ((latent - left) * factorBytes) / sourceBytes);
  }
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}
