import { afterAll, describe, expect, test } from 'vitest';
import type { DenseExperts, LatentExperts, LatentOperator } from '../../lib/experts.ts';
import { svd } from '../../lib/linalg.ts';
import { baseAndDeltas, d2Moe } from '../../lib/methods/d2-moe.ts';
import { whitenedSvd } from '../../lib/methods/whitened-svd.ts';
import { OPERATORS, type Operator } from '../../lib/operators.ts';
import type { Tensor } from '../../lib/tensor.ts';
import { openTestDevice } from '../support/device.ts';
import { toTensor } from '../support/random.ts';
import {
  activations,
  apply,
  type DenseExpert,
  type Matrix,
  matrix,
  multiply,
  relativeError,
  transposed,
} from '../support/reference.ts';
import {
  elementsOf,
  makeLayer,
  prepare,
  requestFor,
  SIZES,
  slotsOf,
  type TestLayer,
  toMatrix,
} from './support.ts';

const device = await openTestDevice();
afterAll(() => device.dispose());

const minus = (a: Matrix, b: Matrix) =>
  matrix(
    a.rows,
    a.cols,
    a.data.map((value, i) => value - (b.data[i] as number)),
  );
const squared = (a: Matrix) => a.data.reduce((sum, value) => sum + value * value, 0);

/** What an operator of an expert gets to see, a row for each token. */
function seenBy(layer: TestLayer, expert: number, operator: Operator): Matrix {
  const x = layer.inputsOf(expert);
  if (operator !== 'down') return x;
  const { gate, up } = layer.experts[expert] as DenseExpert;
  const silu = activations.silu as (x: number) => number;
  const hidden = Array.from({ length: x.rows }, (_, t) => {
    const row = x.data.subarray(t * x.cols, (t + 1) * x.cols);
    const u = apply(up, row);
    return [...apply(gate, row).map((g, i) => silu(g) * (u[i] as number))];
  });
  return matrix(x.rows, gate.rows, hidden.flat());
}

/** The least ‖(W − Ŵ) Xᵀ‖² of all Ŵ of a rank: the tail of the spectrum of W Xᵀ, by LAPACK in f64. */
async function leastLoss(w: Matrix, inputs: Matrix, rank: number): Promise<number> {
  const { s } = await svd(toTensor(device, 'f64', multiply(w, transposed(inputs))));
  return ((await s.read()) as Float64Array).slice(rank).reduce((sum, value) => sum + value * value, 0);
}

describe('whitened SVD', () => {
  test('every factor loses the least that its rank allows on the weighted inputs of its own expert', async () => {
    const layer = await makeLayer(device, 8);
    const { block, expertParameters, dispose } = await (await prepare(whitenedSvd, layer, 0.4)).compress(
      layer.layer,
    );
    const rank = Math.floor((0.6 * 16 * 24) / 40);
    expect(expertParameters).toBe(3 * 6 * rank * 40);
    const latent = block.experts as LatentExperts;
    for (const operator of OPERATORS) {
      const { a, b } = latent[operator] as LatentOperator;
      for (const [expert, dense] of layer.experts.entries()) {
        const weights = slotsOf(layer.ids, expert).map((slot) => layer.weights[slot] as number);
        const seen = seenBy(layer, expert, operator);
        seen.data.forEach((value, i) => {
          seen.data[i] = value * (weights[Math.floor(i / seen.cols)] as number);
        });
        const own = await toMatrix((a[expert] as Tensor).slice(0));
        const basis = await toMatrix(b[expert] as Tensor);
        const product = operator === 'down' ? multiply(basis, own) : multiply(own, basis);
        const lost = squared(multiply(minus(dense[operator], product), transposed(seen)));
        const least = await leastLoss(dense[operator], seen, rank);
        expect(lost / least, `${operator} of expert ${expert}`).toBeLessThan(1.001);
      }
    }
    dispose();
  });
});

describe('D²-MoE', () => {
  test('base and deltas of full rank are the experts', async () => {
    const layer = await makeLayer(device, 9);
    using experts = await baseAndDeltas(layer.layer, 16);
    const original = await elementsOf(layer.layer.block.experts as DenseExperts);
    expect(relativeError(await elementsOf(experts), original)).toBeLessThan(1e-5);
  });

  test('deltas lose the least that their rank allows on the inputs of their own expert', async () => {
    const layer = await makeLayer(device, 10);
    const rank = 4;
    using experts = await baseAndDeltas(layer.layer, rank);
    for (const operator of OPERATORS) {
      const counts = layer.experts.map((_, expert) => slotsOf(layer.ids, expert).length);
      const base = matrix(...shapeOf(layer, operator));
      for (const [i, expert] of layer.experts.entries()) {
        const share = (counts[i] as number) / layer.ids.length;
        expert[operator].data.forEach((value, j) => {
          (base.data[j] as number) += share * value;
        });
      }
      for (const [i, expert] of layer.experts.entries()) {
        const seen = seenBy(layer, i, operator);
        const found = await toMatrix(experts[operator][i] as Tensor);
        const lost = squared(multiply(minus(expert[operator], found), transposed(seen)));
        const least = await leastLoss(minus(expert[operator], base), seen, rank);
        expect(lost / least, `${operator} of expert ${i}`).toBeLessThan(1.01);
        expect(lost / least, `${operator} of expert ${i}`).toBeGreaterThan(0.999);
      }
    }
  });

  test('identical experts are their base, an expert without tokens keeps a delta of its own', async () => {
    const same = await makeLayer(device, 11, {
      change: (experts) => experts.fill(experts[0] as DenseExpert),
    });
    using alike = await baseAndDeltas(same.layer, 1);
    const original = await elementsOf(same.layer.block.experts as DenseExperts);
    expect(relativeError(await elementsOf(alike), original)).toBeLessThan(1e-6);

    const silent = await makeLayer(device, 12, {
      // On a tie the lower index wins: expert 5 never fires.
      router: (router) => router.data.fill(0),
    });
    expect(slotsOf(silent.ids, 5)).toHaveLength(0);
    using experts = await baseAndDeltas(silent.layer, 15);
    const found = await toMatrix(experts.gate[5] as Tensor);
    expect(relativeError(found.data, (silent.experts[5] as DenseExpert).gate.data)).toBeLessThan(0.3);
  });

  test.each([0.2, 0.35, 0.5])('keeps the budget with %f removed, to within one rank', async (ratio) => {
    const layer = await makeLayer(device, 13, { dtype: 'bf16' });
    const { expertParameters, expertBytes, dispose } = await (await prepare(d2Moe, layer, ratio)).compress(
      layer.layer,
    );
    const dense = 3 * 6 * 24 * 16;
    expect(expertParameters).toBeLessThanOrEqual((1 - ratio) * dense);
    expect(expertParameters + 3 * 6 * 40).toBeGreaterThan((1 - ratio) * dense);
    expect(expertBytes).toBe(2 * expertParameters);
    dispose();
  });

  test('a target that leaves nothing for deltas is refused', () => {
    expect(() => d2Moe.check(requestFor(SIZES, 0.8))).toThrow(/at most 0\.729.*targetRatio/);
    expect(() => d2Moe.check(requestFor(SIZES, 0.729))).not.toThrow();
  });
});

function shapeOf({ sizes: { n, m } }: TestLayer, operator: Operator): [number, number] {
  return operator === 'down' ? [n, m] : [m, n];
}
