import { expected, throwIfAborted } from '../errors.ts';
import type { DenseExperts } from '../experts.ts';
import { eigh, gemm } from '../linalg.ts';
import type { CalibrationLayer } from '../model/calibration-layer.ts';
import { OPERATORS, type Operator } from '../operators.ts';
import type { Tensor } from '../tensor.ts';
import { squaredNorm, weightedSum } from './arithmetic.ts';
import { type ExpertMatrices, expertOutputs, gatherRows, tokensByExpert } from './expert-tokens.ts';
import { denseExperts, remakeExperts } from './experts.ts';
import { type ExpertCosts, type Method, type MethodRequest, withExperts } from './method.ts';
import { storedBytes } from './sizes.ts';

/**
 * D²-MoE (arXiv 2502.17298): every matrix is a base that all experts share plus a delta of low rank, truncated in the norm
 * of its results on the expert's calibration tokens (as SVD-LLM does).
 *
 * Simplified: the base is the mean weighted by how often experts were chosen (theirs by Fisher information, which needs
 * gradients); the base itself is not pruned; the ranks are equal everywhere. Run here with W = base + U V multiplied out,
 * of factors rounded as they would be stored.
 */
export const d2Moe: Method = {
  name: 'd2-moe',
  summary: 'D²-MoE: one base for all experts, and a low-rank delta for each',
  grouped: false,
  check: (request) => void deltaRank(request),
  async prepare(request) {
    const rank = deltaRank(request);
    return {
      async compress(layer) {
        const experts = await baseAndDeltas(layer, rank, request.signal);
        return withExperts(layer, experts, costs(layer, rank));
      },
    };
  },
};

/** The largest rank of the deltas with which base and deltas fit what may stay. */
function deltaRank({ model, targetRatio }: MethodRequest): number {
  const { hiddenSize: n, intermediateSize: m, numExperts } = model.checkpoint.spec;
  const rank = Math.floor((((1 - targetRatio) * numExperts - 1) * m * n) / (numExperts * (m + n)));
  if (rank < 1) {
    const most = 1 - 1 / numExperts - (m + n) / (m * n);
    throw expected(
      `at most ${Math.floor(1000 * most) / 1000}, for a base and deltas,`,
      'targetRatio',
      targetRatio,
    );
  }
  return Math.min(rank, m, n);
}

/** The base is applied once a token: to x, and to the weighted sum of the experts' hidden elements. */
function costs(layer: CalibrationLayer, rank: number): ExpertCosts {
  const experts = denseExperts(layer);
  const { numExperts, hiddenSize: n, intermediateSize: m } = experts;
  const factors = rank * (m + n);
  const expertParameters = 3 * (m * n + numExperts * factors);
  return {
    expertParameters,
    expertBytes: storedBytes(experts, expertParameters),
    flopsPerToken: 6 * (m * n + layer.block.spec.topK * factors),
  };
}

/** The experts W_i = base + U_i V_i, in f32. */
export async function baseAndDeltas(
  layer: CalibrationLayer,
  rank: number,
  signal?: AbortSignal,
): Promise<DenseExperts> {
  const experts = denseExperts(layer);
  const tokens = await tokensByExpert(layer.routing, experts.numExperts);
  const bases = await meanExpert(
    experts,
    tokens.map(({ rows }) => rows.length),
  );
  try {
    return await remakeExperts(experts, async (made) => {
      for (const [expert, { rows }] of tokens.entries()) {
        throwIfAborted(signal);
        using inputs = await gatherRows(layer.x, rows);
        const own = matricesOf(experts, expert);
        for (const operator of OPERATORS) {
          made[operator].push(await truncateDelta(own, operator, bases[operator], inputs, experts, rank));
        }
      }
    });
  } finally {
    for (const operator of OPERATORS) bases[operator].dispose();
  }
}

function matricesOf(experts: DenseExperts, expert: number): ExpertMatrices {
  return {
    gate: experts.gate[expert] as Tensor,
    up: experts.up[expert] as Tensor,
    down: experts.down[expert] as Tensor,
  };
}

/** The mean of all experts, weighted by their tokens, rounded to their dtype. */
async function meanExpert(
  experts: DenseExperts,
  tokens: readonly number[],
): Promise<Record<Operator, Tensor>> {
  const total = tokens.reduce((sum, count) => sum + count, 0);
  const mean = async (operator: Operator) => {
    const terms = experts[operator].map((tensor, i) => ({ tensor, weight: (tokens[i] as number) / total }));
    using wide = await weightedSum(terms);
    return wide.to((terms[0] as { tensor: Tensor }).tensor.dtype);
  };
  return { gate: await mean('gate'), up: await mean('up'), down: await mean('down') };
}

/** base + U V for one matrix W of an expert, U V the best of this rank for the results of W − base on the inputs. */
async function truncateDelta(
  expert: ExpertMatrices,
  operator: Operator,
  base: Tensor,
  inputs: Tensor<'f32'>,
  experts: DenseExperts,
  rank: number,
): Promise<Tensor> {
  const { dtype } = expert[operator];
  using delta = await weightedSum([
    { tensor: expert[operator], weight: 1 },
    { tensor: base, weight: -1 },
  ]);
  using moment = await resultMoment(expert, operator, delta, inputs, experts);
  using directions = await leadingDirections(moment, rank);
  using projected = await gemm(directions, delta);
  using u = await directions.to(dtype);
  using v = await projected.to(dtype);
  const whole = await base.to('f32');
  await gemm(u, v, { transposeA: true, out: whole, beta: 1 });
  return whole;
}

/** Eigenvectors as rows; in f64, since the energy of activations spans many orders of magnitude. */
async function leadingDirections(moment: Tensor, count: number): Promise<Tensor<'f32'>> {
  using wide = await moment.to('f64');
  const { values, vectors } = await eigh(wide, { top: count });
  values.dispose();
  using found = vectors;
  return found.to('f32');
}

/**
 * The second moment of what a delta gives on the expert's tokens; its leading eigenvectors are the left singular vectors of
 * the whitened delta. One more token, with the mean energy in all directions alike, orders those that no token told apart.
 */
async function resultMoment(
  expert: ExpertMatrices,
  operator: Operator,
  delta: Tensor<'f32'>,
  inputs: Tensor<'f32'>,
  experts: DenseExperts,
): Promise<Tensor> {
  const tokens = inputs.shape[0] as number;
  const moment = await gemm(delta, delta, { transposeB: true });
  if (tokens === 0) return moment;
  using results = await resultsOf(expert, operator, delta, inputs, experts);
  const norm = await squaredNorm(delta);
  const prior = norm > 0 ? (await squaredNorm(results)) / (tokens * norm) : 0;
  await gemm(delta, delta, { transposeB: true, alpha: prior, out: moment });
  await gemm(results, results, { transposeA: true, beta: 1, out: moment });
  return moment;
}

async function resultsOf(
  expert: ExpertMatrices,
  operator: Operator,
  delta: Tensor<'f32'>,
  inputs: Tensor<'f32'>,
  experts: DenseExperts,
): Promise<Tensor<'f32'>> {
  if (operator !== 'down') return gemm(inputs, delta, { transposeB: true });
  using gate = await expert.gate.to('f32');
  using up = await expert.up.to('f32');
  return expertOutputs({ gate, up, down: delta }, experts, inputs);
}
