import type { FactorShapes } from '../checkpoint/conversion/layer-method.ts';
import type { MoeSpec } from '../checkpoint/family.ts';
import { type Factorization, layerCosts } from '../costs/layer-costs.ts';
import { BLOCK, byteCount } from '../dtype.ts';
import type { Operator } from '../experts.ts';
import { resolveGroups } from '../factorize.ts';
import {
  type CalibrationLayer,
  type GroupRouting,
  groupProbabilities,
  groupRouting,
} from '../model/calibration.ts';

/** What the routed experts of a token cost: all MoE layers, latent form. */
export interface GroupUse {
  /** Latent spaces that a token's experts belong to: the mean over MoE layers. */
  readonly distinctGroups: number;
  readonly flopsPerToken: number;
  readonly weightBytesPerToken: number;
  /** With each group on another device and B applied at the source; elements as wide as the source's. */
  readonly allToAllBytesPerToken: number;
}

/** How tokens of the calibration text use the groups, and what would be if they used them otherwise. */
export interface GroupUseReport {
  readonly tokens: number;
  /** By the routing of these tokens. */
  readonly measured: GroupUse;
  /**
   * The same routing with groups of consecutive experts: what shared factors cost, times the ratio of distinct groups in
   * each layer. Exact where all latent sizes are alike; they are not chosen again here.
   */
  readonly consecutive: GroupUse;
  /** With all sets of K experts equally likely, as plans assume. */
  readonly uniform: GroupUse;
}

interface MeasuredLayer {
  readonly layer: number;
  readonly chosen: GroupRouting;
  /** The probabilities of consecutive groups. */
  readonly consecutive: readonly number[];
}

/** Counts how the tokens of a pass over the layers use the groups. */
export class GroupUseCounter {
  readonly #spec: MoeSpec;
  readonly #shapes: FactorShapes;
  readonly #sourceBytes: (layer: number) => number;
  readonly #measured: MeasuredLayer[] = [];
  #tokens = 0;

  /** @param sourceBytes of one element of a layer's experts as they were. */
  constructor(spec: MoeSpec, shapes: FactorShapes, sourceBytes: (layer: number) => number) {
    this.#spec = spec;
    this.#shapes = shapes;
    this.#sourceBytes = sourceBytes;
  }

  async count({ layer, routing }: CalibrationLayer): Promise<void> {
    const groups = this.#shapes.groups(layer);
    const groupSize = this.#spec.numExperts / groups.length;
    const inOrder = resolveGroups({ groupSize }, this.#spec.numExperts);
    this.#tokens = routing.ids.shape[0] as number;
    this.#measured.push({
      layer,
      chosen: await groupRouting(routing, groups),
      consecutive: await groupProbabilities(routing, inOrder),
    });
  }

  /** Undefined unless every layer was counted. */
  get report(): GroupUseReport | undefined {
    if (this.#measured.length < this.#spec.layers.length) return undefined;
    return {
      tokens: this.#tokens,
      measured: this.#total(({ layer, chosen }) => this.#costs(layer, chosen)),
      consecutive: this.#total(({ layer, chosen, consecutive }) => {
        const unused = { ...chosen, groupProbabilities: chosen.groupProbabilities.map(() => 0) };
        const ratio = sum(consecutive) / sum(chosen.groupProbabilities);
        return scaled(this.#costs(layer, unused), this.#costs(layer, chosen), ratio);
      }),
      uniform: this.#total(({ layer }) => this.#costs(layer)),
    };
  }

  #total(costsOf: (measured: MeasuredLayer) => GroupUse): GroupUse {
    const layers = this.#measured.map(costsOf);
    const total = (cost: keyof GroupUse) => sum(layers.map((own) => own[cost]));
    return {
      distinctGroups: total('distinctGroups') / layers.length,
      flopsPerToken: total('flopsPerToken'),
      weightBytesPerToken: total('weightBytesPerToken'),
      allToAllBytesPerToken: total('allToAllBytesPerToken'),
    };
  }

  /** By default under uniform routing. */
  #costs(layer: number, routing?: GroupRouting): GroupUse {
    const { hiddenSize: n, intermediateSize: m, topK: K } = this.#spec;
    const factorization = this.#factorization(layer);
    const bytes = this.#sourceBytes(layer);
    const costs = layerCosts(this.#spec, factorization, { bytesPerParameter: bytes, ...routing });
    const dense = (3 - this.#shapes.operators.length) * K * m * n;
    const factors = costs.weightBytesPerToken.latent / bytes - dense;
    return {
      distinctGroups: costs.allToAllBytesPerToken.dense / (2 * n * bytes),
      flopsPerToken: costs.flopsPerToken.latent,
      weightBytesPerToken: dense * bytes + factors * this.#factorBytes(bytes),
      allToAllBytesPerToken: costs.allToAllBytesPerToken.latent,
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

  /** Of one element; rows are filled up to whole blocks, which is not counted. */
  #factorBytes(sourceBytes: number): number {
    const { quantization } = this.#shapes;
    return quantization === undefined ? sourceBytes : byteCount(quantization, [BLOCK]) / BLOCK;
  }
}

/** Costs grow in proportion to the distinct groups, from `none` on. */
function scaled(none: GroupUse, some: GroupUse, ratio: number): GroupUse {
  const grown = (cost: keyof GroupUse) => none[cost] + ratio * (some[cost] - none[cost]);
  return {
    distinctGroups: grown('distinctGroups'),
    flopsPerToken: grown('flopsPerToken'),
    weightBytesPerToken: grown('weightBytesPerToken'),
    allToAllBytesPerToken: grown('allToAllBytesPerToken'),
  };
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}
