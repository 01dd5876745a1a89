import { DenseExperts } from '../experts.ts';
import type { Partition } from '../factorization/groups.ts';
import type { CalibrationLayer } from '../model/calibration-layer.ts';
import { routingStatistics } from '../model/routing-statistics.ts';
import { OPERATORS, type Operator } from '../operators.ts';
import type { Tensor } from '../tensor.ts';
import { sumOfRows, weightedSum } from './arithmetic.ts';
import { averageLinkage } from './clustering.ts';
import { expertOutputs } from './expert-tokens.ts';
import { denseExperts, replaceExperts } from './experts.ts';
import type { Method, MethodRequest } from './method.ts';
import { planExperts } from './sizes.ts';

/**
 * HC-SMoE (arXiv 2410.08589): experts whose mean outputs over the calibration text are near each other are merged, by
 * hierarchical clustering with average linkage; a merged expert is the mean of its members, weighted by how often they
 * were chosen. The router stays as it is: a token may choose two members of a cluster, and gets that expert twice.
 *
 * Simplified: the same number of clusters in every layer.
 */
export const hcSmoe: Method = {
  name: 'hc-smoe',
  summary: 'HC-SMoE: experts with similar outputs are merged',
  grouped: false,
  check: (request) => void clusterCount(request),
  async prepare(request) {
    const count = clusterCount(request);
    return {
      async compress(layer) {
        const clusters = averageLinkage(await meanOutputs(layer), count);
        const experts = await mergeExperts(layer, clusters);
        return replaceExperts(layer, experts);
      },
    };
  },
};

function clusterCount(request: MethodRequest): number {
  return planExperts(request, 1);
}

/** Tokens that go through an expert together. */
const SPAN_TOKENS = 4096;

/** What every expert puts out on average over all calibration tokens, whoever they are routed to. */
async function meanOutputs(layer: CalibrationLayer): Promise<Float64Array[]> {
  const { x } = layer;
  const experts = denseExperts(layer);
  const [tokens, n] = x.shape as [number, number];
  const means = experts.gate.map(() => new Float64Array(n));
  for (const [expert, mean] of means.entries()) {
    const [gate, up, down] = OPERATORS.map((operator) => experts[operator][expert] as Tensor);
    for (let begin = 0; begin < tokens; begin += SPAN_TOKENS) {
      using inputs = x.rows(begin, Math.min(tokens, begin + SPAN_TOKENS));
      using outputs = await expertOutputs({ gate, up, down } as Record<Operator, Tensor>, experts, inputs);
      for (const [i, value] of (await sumOfRows(outputs)).entries()) (mean[i] as number) += value / tokens;
    }
  }
  return means;
}

/** Experts in which all members of a cluster are the same tensors: their mean, by frequency. */
async function mergeExperts(layer: CalibrationLayer, clusters: Partition): Promise<DenseExperts> {
  const experts = denseExperts(layer);
  const { expertCounts } = await routingStatistics(layer.routing, experts.numExperts);
  const owned: Tensor[] = [];
  const merged: Record<Operator, Tensor[]> = {
    gate: [...experts.gate],
    up: [...experts.up],
    down: [...experts.down],
  };
  try {
    for (const cluster of clusters.filter(({ length }) => length > 1)) {
      const weights = frequencies(cluster, expertCounts);
      for (const operator of OPERATORS) {
        const mean = await meanOf(
          cluster.map((expert) => experts[operator][expert] as Tensor),
          weights,
        );
        owned.push(mean);
        for (const expert of cluster) merged[operator][expert] = mean;
      }
    }
    return new DenseExperts({ ...experts, ...merged, owned });
  } catch (error) {
    for (const tensor of owned) tensor.dispose();
    throw error;
  }
}

/** Shares of a cluster's choices; equal where none was chosen. */
function frequencies(cluster: readonly number[], counts: Float64Array): number[] {
  const total = cluster.reduce((sum, expert) => sum + (counts[expert] as number), 0);
  return cluster.map((expert) => (total > 0 ? (counts[expert] as number) / total : 1 / cluster.length));
}

async function meanOf(tensors: readonly Tensor[], weights: readonly number[]): Promise<Tensor> {
  using wide = await weightedSum(tensors.map((tensor, i) => ({ tensor, weight: weights[i] as number })));
  return wide.to((tensors[0] as Tensor).dtype);
}
