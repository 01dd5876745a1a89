import fc from 'fast-check';
import { afterAll, describe, expect, test } from 'vitest';
import { DenseExperts, type LatentExperts, type LatentOperator } from '../../lib/experts.ts';
import { type FactorizeOptions, factorizeExperts } from '../../lib/factorization/factorize.ts';
import { svd } from '../../lib/linalg.ts';
import { OPERATORS, type Operator } from '../../lib/operators.ts';
import type { Tensor } from '../../lib/tensor.ts';
import { openOwnDevice, openTestDevice } from '../support/device.ts';
import { Random, toTensor } from '../support/random.ts';
import { type Matrix, matrix, multiply, relativeError, transposed } from '../support/reference.ts';

const device = await openTestDevice();
afterAll(() => device.dispose());

type Weights = Record<Operator, Matrix[]>;

function randomWeights(
  seed: number,
  n: number,
  m: number,
  experts: number,
  dtype: 'f32' | 'f64' | 'bf16' = 'f32',
): Weights {
  const random = new Random(seed);
  const draw = (rows: number, cols: number) =>
    Array.from({ length: experts }, () => random.matrix(rows, cols, 0.1, dtype));
  return { gate: draw(m, n), up: draw(m, n), down: draw(n, m) };
}

function layerOf(weights: Weights, dtype: 'f32' | 'f64' | 'bf16' = 'f32'): DenseExperts {
  const tensors = (op: Operator) => weights[op].map((w) => toTensor(device, dtype, w));
  return new DenseExperts({ gate: tensors('gate'), up: tensors('up'), down: tensors('down') });
}

/** Every expert's shared side as columns: W for gate and up, Wᵀ for down; stacked on each other. */
function stack(operator: Operator, experts: readonly Matrix[]): Matrix {
  const parts = operator === 'down' ? experts.map(transposed) : experts;
  const cols = (parts[0] as Matrix).cols;
  return matrix(
    parts.reduce((rows, p) => rows + p.rows, 0),
    cols,
    parts.flatMap((p) => [...p.data]),
  );
}

/** Eigenvalues by Jacobi rotations in plain JavaScript: an SVD tail that owes nothing to LAPACK. */
function jacobiEigenvalues(symmetric: Matrix): number[] {
  const n = symmetric.rows;
  const a = Float64Array.from(symmetric.data);
  const at = (i: number, j: number) => a[i * n + j] as number;
  for (let sweep = 0; sweep < 60; sweep++) {
    let off = 0;
    for (let p = 0; p < n; p++) {
      for (let q = p + 1; q < n; q++) {
        off += at(p, q) ** 2;
        if (at(p, q) === 0) continue;
        const theta = (at(q, q) - at(p, p)) / (2 * at(p, q));
        const t = Math.sign(theta || 1) / (Math.abs(theta) + Math.hypot(theta, 1));
        const c = 1 / Math.hypot(t, 1);
        const s = t * c;
        for (let i = 0; i < n; i++) {
          const [x, y] = [at(i, p), at(i, q)];
          a[i * n + p] = c * x - s * y;
          a[i * n + q] = s * x + c * y;
        }
        for (let i = 0; i < n; i++) {
          const [x, y] = [at(p, i), at(q, i)];
          a[p * n + i] = c * x - s * y;
          a[q * n + i] = s * x + c * y;
        }
      }
    }
    if (off < 1e-30) break;
  }
  return Array.from({ length: n }, (_, i) => at(i, i)).sort((x, y) => y - x);
}

function optimum(operator: Operator, experts: readonly Matrix[], rank: number): number {
  const stacked = stack(operator, experts);
  const spectrum = jacobiEigenvalues(multiply(transposed(stacked), stacked)).map((v) => Math.max(v, 0));
  const total = spectrum.reduce((sum, v) => sum + v, 0);
  return Math.sqrt(spectrum.slice(rank).reduceRight((sum, v) => sum + v, 0) / total);
}

/** A_i·B (down: B·A_i) of every expert, from the factors as stored. */
async function rebuilt(latent: LatentExperts, operator: Operator): Promise<Matrix[]> {
  const { a, b } = latent[operator] as LatentOperator;
  const out: Matrix[] = [];
  for (const [g, group] of latent.groups.entries()) {
    const bTensor = b[g];
    if (!bTensor) throw new Error(`no b for group ${g}`);
    const bMatrix = matrix(bTensor.shape[0] as number, bTensor.shape[1] as number, await bTensor.toFloat32());
    for (const [i, expert] of group.entries()) {
      const slice = a[g]?.slice(i);
      if (!slice) throw new Error(`no a for group ${g}`);
      const aMatrix = matrix(slice.shape[0] as number, slice.shape[1] as number, await slice.toFloat32());
      out[expert] = operator === 'down' ? multiply(bMatrix, aMatrix) : multiply(aMatrix, bMatrix);
    }
  }
  return out;
}

const flat = (parts: readonly Matrix[]) => parts.flatMap((p) => [...p.data]);

describe('factorizeExperts', () => {
  test.each(['gram', 'svd'] as const)(
    'solver %s: the optimum equals a Jacobi spectrum within 1e-6, and the reached error the optimum and the real residual',
    async (solver) => {
      await fc.assert(
        fc.asyncProperty(
          fc.record({
            seed: fc.integer(),
            n: fc.integer({ min: 2, max: 24 }),
            m: fc.integer({ min: 1, max: 15 }),
            k: fc.integer({ min: 1, max: 4 }),
            groups: fc.integer({ min: 1, max: 3 }),
            share: fc.double({ min: 0, max: 1, noNaN: true }),
          }),
          async ({ seed, n, m, k, groups, share }) => {
            const weights = randomWeights(seed, n, m, k * groups);
            const largest = Math.min(n, k * m);
            const r = 1 + Math.floor(share * (largest - 1));
            using dense = layerOf(weights);
            using latent = await factorizeExperts(dense, { groupSize: k, latentSize: r, solver });
            expect(latent.report).toHaveLength(3 * groups);
            for (const row of latent.report) {
              const members = weights[row.operator].slice(row.group * k, (row.group + 1) * k);
              const best = optimum(row.operator, members, r);
              expect(Math.abs(row.optimalRelativeError - best)).toBeLessThan(1e-6 * best + 2e-7);
              expect(Math.abs(row.relativeError - row.optimalRelativeError)).toBeLessThan(1e-6);
              const again = (await rebuilt(latent, row.operator)).slice(row.group * k, (row.group + 1) * k);
              expect(Math.abs(relativeError(flat(again), flat(members)) - row.relativeError)).toBeLessThan(
                1e-6,
              );
            }
          },
        ),
        { numRuns: 40 },
      );
    },
  );

  test.each(['gram', 'svd'] as const)(
    'solver %s: planted groups of rank r come back exact and are called exact; r − 1 is not',
    async (solver) => {
      const random = new Random(7);
      const [n, m, k, r] = [40, 24, 4, 12];
      const planted = (out: number, inner: number, down: boolean): Matrix[] => {
        const shared = random.matrix(r, n, 0.3);
        return Array.from({ length: k }, () => {
          const exact = down
            ? multiply(transposed(shared), random.matrix(r, inner))
            : multiply(random.matrix(out, r), shared);
          return { ...exact, data: exact.data.map(Math.fround) };
        });
      };
      const weights: Weights = {
        gate: planted(m, n, false),
        up: planted(m, n, false),
        down: planted(n, m, true),
      };
      using dense = layerOf(weights);
      using enough = await factorizeExperts(dense, { groupSize: k, latentSize: r, solver });
      for (const row of enough.report) {
        expect(row).toMatchObject({ exact: true, jointDimension: r });
        expect(row.relativeError).toBeLessThan(1e-6);
        expect(row.optimalRelativeError).toBeLessThan(1e-6);
      }
      using short = await factorizeExperts(dense, { groupSize: k, latentSize: r - 1, solver });
      for (const row of short.report) {
        expect(row).toMatchObject({ exact: false, jointDimension: r });
        expect(row.relativeError).toBeGreaterThan(1e-3);
      }
    },
  );

  test('groups of one expert reduce to the truncated SVD of each expert', async () => {
    const weights = randomWeights(3, 20, 14, 3);
    using dense = layerOf(weights);
    using latent = await factorizeExperts(dense, { groupSize: 1, latentSize: 5 });
    for (const operator of OPERATORS) {
      const again = await rebuilt(latent, operator);
      for (const [i, w] of weights[operator].entries()) {
        const { u, s, vt } = await svd(toTensor(device, 'f64', w));
        const [uData, sData, vtData] = [await u.toFloat32(), await s.toFloat32(), await vt.toFloat32()];
        const k = sData.length;
        const truncated = matrix(w.rows, w.cols);
        for (let row = 0; row < w.rows; row++) {
          for (let col = 0; col < w.cols; col++) {
            let sum = 0;
            for (let j = 0; j < 5; j++)
              sum +=
                (uData[row * k + j] as number) * (sData[j] as number) * (vtData[j * w.cols + col] as number);
            truncated.data[row * w.cols + col] = sum;
          }
        }
        expect(relativeError((again[i] as Matrix).data, truncated.data)).toBeLessThan(1e-5);
      }
    }
  });

  test('the optimal error falls as the latent size grows, rises as more experts share it, and both solvers agree', async () => {
    const weights = randomWeights(11, 32, 20, 8);
    using dense = layerOf(weights);
    const error = async (options: FactorizeOptions) => {
      using latent = await factorizeExperts(dense, options);
      const rows = latent.report.filter((row) => row.operator === 'gate');
      return Math.sqrt(rows.reduce((sum, row) => sum + row.relativeError ** 2, 0) / rows.length);
    };
    const byRank = [];
    for (const latentSize of [2, 8, 16, 31]) byRank.push(await error({ groupSize: 4, latentSize }));
    expect(byRank).toEqual([...byRank].sort((a, b) => b - a));
    // Fig. 2 of the paper: the same latent size, more and more experts in a group.
    const byGroup = [];
    for (const groupSize of [1, 2, 4, 8]) byGroup.push(await error({ groupSize, latentSize: 8 }));
    expect(byGroup).toEqual([...byGroup].sort((a, b) => a - b));
    expect((byGroup[3] as number) - (byGroup[0] as number)).toBeGreaterThan(0.05);
    expect(await error({ groupSize: 4, latentSize: 8, solver: 'svd' })).toBeCloseTo(byGroup[2] as number, 6);
  });

  test.each(['gram', 'svd'] as const)(
    'rank reduction never beats its absence, and is the identity at full rank (solver %s)',
    async (solver) => {
      const weights = randomWeights(5, 18, 30, 4);
      using dense = layerOf(weights);
      const errors = async (rankReduction: number) => {
        using latent = await factorizeExperts(dense, { groupSize: 2, latentSize: 9, rankReduction, solver });
        return latent.report.map((row) => row.relativeError);
      };
      const plain = await errors(0);
      const full = await errors(18);
      const reduced = await errors(6);
      for (const [i, error] of plain.entries()) {
        expect(full[i]).toBeCloseTo(error, 9);
        expect(reduced[i]).toBeGreaterThan(error);
      }
    },
  );

  test('rank reduction followed by a latent space that holds it all leaves exactly the truncated experts', async () => {
    const weights = randomWeights(9, 16, 10, 2);
    using dense = layerOf(weights);
    using latent = await factorizeExperts(dense, { groupSize: 2, latentSize: 8, rankReduction: 4 });
    for (const row of latent.report) {
      const squares = weights[row.operator].map((w) => {
        const spectrum = jacobiEigenvalues(
          w.rows < w.cols ? multiply(w, transposed(w)) : multiply(transposed(w), w),
        );
        return {
          tail: spectrum.slice(4).reduce((s, v) => s + v, 0),
          all: spectrum.reduce((s, v) => s + v, 0),
        };
      });
      const wanted = Math.sqrt(
        squares.reduce((s, v) => s + v.tail, 0) / squares.reduce((s, v) => s + v.all, 0),
      );
      expect(row.relativeError).toBeCloseTo(wanted, 6);
      expect(row.optimalRelativeError).toBeLessThan(1e-6);
    }
  });

  test('shared gate/up gives both the same B, and the error of the joint stack', async () => {
    const weights = randomWeights(21, 24, 7, 4);
    using dense = layerOf(weights);
    using latent = await factorizeExperts(dense, { groupSize: 2, latentSize: 10, sharedGateUp: true });
    const [gate, up] = [latent.gate as LatentOperator, latent.up as LatentOperator];
    expect(gate.b).toEqual(up.b);
    for (const g of [0, 1]) {
      const joint = [...weights.gate.slice(2 * g, 2 * g + 2), ...weights.up.slice(2 * g, 2 * g + 2)];
      const row = latent.report.find((r) => r.operator === 'up' && r.group === g);
      expect(row?.optimalRelativeError).toBeCloseTo(optimum('gate', joint, 10), 6);
      expect(row?.relativeError).toBeCloseTo(optimum('gate', joint, 10), 6);
    }
  });

  test('the control destroys what experts share, and leaves experts that share nothing as they were', async () => {
    const random = new Random(31);
    const base = random.matrix(6, 30);
    const alike = Array.from({ length: 4 }, () => multiply(random.matrix(12, 6), base)).map((w) => ({
      ...w,
      data: w.data.map(Math.fround),
    }));
    const alone = Array.from({ length: 4 }, () => random.matrix(12, 30));
    const weights: Weights = {
      gate: alike,
      up: alone,
      down: Array.from({ length: 4 }, () => random.matrix(30, 12)),
    };
    using dense = layerOf(weights);
    using latent = await factorizeExperts(dense, { groupSize: 4, latentSize: 6, control: true });
    const row = (operator: Operator) => latent.report.find((r) => r.operator === operator);
    expect(row('gate')?.optimalRelativeError).toBeLessThan(1e-6);
    expect(row('gate')?.controlRelativeError).toBeGreaterThan(0.5);
    for (const operator of ['up', 'down'] as const) {
      const { optimalRelativeError = 0, controlRelativeError = 0 } = row(operator) ?? {};
      expect(Math.abs(controlRelativeError - optimalRelativeError)).toBeLessThan(0.05);
      expect(controlRelativeError).not.toBe(optimalRelativeError);
    }
  });

  test('all-zero and rank-deficient experts convert, exactly', async () => {
    const zero = () => matrix(6, 10);
    const weights: Weights = {
      gate: [zero(), zero()],
      up: [zero(), new Random(1).matrix(6, 10)],
      down: [matrix(10, 6), matrix(10, 6)],
    };
    using dense = layerOf(weights);
    using latent = await factorizeExperts(dense, { groupSize: 2, latentSize: 8 });
    for (const row of latent.report)
      expect(row).toMatchObject({ exact: true, jointDimension: row.operator === 'up' ? 6 : 0 });
    for (const operator of OPERATORS) {
      expect(relativeError(flat(await rebuilt(latent, operator)), flat(weights[operator]))).toBeLessThan(
        1e-6,
      );
    }
  });

  test('bf16 experts: the optimum is that of their values, and rounding the factors costs little', async () => {
    const weights = randomWeights(41, 64, 48, 4, 'bf16');
    using dense = layerOf(weights, 'bf16');
    using latent = await factorizeExperts(dense, { groupSize: 4, latentSize: 32 });
    using wide = await factorizeExperts(dense, { groupSize: 4, latentSize: 32, dtype: 'f32' });
    for (const [i, row] of latent.report.entries()) {
      const best = optimum(row.operator, weights[row.operator], 32);
      expect(Math.abs(row.optimalRelativeError / best - 1)).toBeLessThan(1e-6);
      expect(row.relativeError / best - 1).toBeLessThan(1e-4);
      expect(Math.abs((wide.report[i]?.relativeError ?? 1) / best - 1)).toBeLessThan(1e-6);
    }
  });

  test.each<[string, Partial<FactorizeOptions>]>([
    ['asked for', { latentSize: 5, operators: ['up'] }],
    ['given a latent size', { latentSize: { up: 5 } }],
    ['asked for, whatever has a latent size', { latentSize: { up: 5, down: 3 }, operators: ['up'] }],
  ])('operators that are not %s stay the dense tensors they were', async (_, options) => {
    using dense = layerOf(randomWeights(2, 12, 8, 4));
    using latent = await factorizeExperts(dense, {
      groups: [
        [3, 0],
        [1, 2],
      ],
      latentSize: 1,
      ...options,
    });
    for (const operator of ['gate', 'down'] as const) {
      const kept = latent[operator] as readonly Tensor[];
      expect(kept.every((tensor, i) => tensor === dense[operator][i])).toBe(true);
    }
    expect(latent.report.map(({ operator, group }) => [operator, group])).toEqual([
      ['up', 0],
      ['up', 1],
    ]);
  });
});

describe('bad input', () => {
  const small = () => layerOf(randomWeights(1, 12, 8, 6));

  test.each<[string, FactorizeOptions, RegExp]>([
    [
      'k that does not divide N',
      { groupSize: 4, latentSize: 4 },
      /a divisor of the 6 experts \(1, 2, 3, 6\) for groupSize but received 4/,
    ],
    ['r = 0', { groupSize: 2, latentSize: 0 }, /from 1 to 12 .* for latentSize of gate but received 0/],
    [
      'r > min(n, k·m)',
      { groupSize: 1, latentSize: 9 },
      /from 1 to 8 .* for latentSize of gate but received 9/,
    ],
    ['a fractional r', { groupSize: 2, latentSize: 2.5 }, /latentSize of gate but received 2.5/],
    [
      'an unknown operator',
      { groupSize: 2, latentSize: 2, operators: ['sideways' as Operator] },
      /some of gate, up, down for operators/,
    ],
    [
      'an expert in two groups',
      {
        groups: [
          [0, 1, 2],
          [2, 3, 4, 5],
        ],
        latentSize: 2,
      },
      /each of the 6 experts once/,
    ],
    [
      'sharedGateUp without up',
      { groupSize: 2, latentSize: 2, operators: ['gate'], sharedGateUp: true },
      /both gate and up/,
    ],
  ])('%s is an INVALID_ARGUMENT that says what would be right', async (_, options, message) => {
    using dense = small();
    const call = factorizeExperts(dense, options);
    await expect(call).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(call).rejects.toThrow(message);
  });

  test.each([Number.NaN, Number.POSITIVE_INFINITY])(
    '%s in a weight is NON_FINITE, with operator, expert and position',
    async (bad) => {
      const weights = randomWeights(1, 12, 8, 6);
      (weights.up[3] as Matrix).data[2 * 12 + 5] = bad;
      using dense = layerOf(weights);
      const call = factorizeExperts(dense, { groupSize: 2, latentSize: 4 });
      await expect(call).rejects.toMatchObject({ code: 'NON_FINITE' });
      await expect(call).rejects.toThrow(/The up matrix of expert 3 has NaN or infinity at \[2, 5\]/);
    },
  );

  test('an abort between experts stops with ABORTED and leaves no memory behind', async () => {
    using own = await openOwnDevice();
    const weights = randomWeights(1, 12, 8, 6);
    const tensors = (op: Operator) => weights[op].map((w) => toTensor(own, 'f32', w));
    using dense = new DenseExperts({ gate: tensors('gate'), up: tensors('up'), down: tensors('down') });
    const before = own.memoryUsage().tensors;
    const controller = new AbortController();
    const call = factorizeExperts(dense, {
      groupSize: 2,
      latentSize: 4,
      signal: controller.signal,
      onProgress: ({ done }) => done === 5 && controller.abort(new Error('enough')),
    });
    await expect(call).rejects.toMatchObject({ code: 'ABORTED', cause: { message: 'enough' } });
    await own.synchronize();
    expect(own.memoryUsage().tensors).toBe(before);
  });

  test('progress counts every expert of both passes once', async () => {
    using dense = small();
    const seen: number[] = [];
    using latent = await factorizeExperts(dense, {
      groupSize: 3,
      latentSize: 4,
      onProgress: ({ done, total }) => seen.push(done / total),
    });
    expect(seen).toEqual(Array.from({ length: 36 }, (_, i) => (i + 1) / 36));
    expect(latent.report).toHaveLength(6);
  });
});
