import fc from 'fast-check';
import { afterAll, describe, expect, test } from 'vitest';
import { batchedGemm, eigh, gemm, groupedGemm, svd, transpose } from '../lib/linalg.ts';
import type { Tensor } from '../lib/tensor.ts';
import { openTestDevice } from './support/device.ts';
import { poisoned, Random, roundTo, toTensor } from './support/random.ts';
import { type Matrix, matrix, multiply, relativeError, transposed } from './support/reference.ts';

const device = await openTestDevice();
afterAll(() => device.dispose());

type Float = 'f32' | 'f64' | 'bf16' | 'f16';
const floats = fc.constantFrom<Float>('f32', 'f64', 'bf16', 'f16');
const bounds: Record<Float, number> = { f64: 1e-13, f32: 1e-5, f16: 1e-3, bf16: 1e-2 };
const size = fc.integer({ min: 0, max: 40 });

const gemmCase = fc.record({
  seed: fc.integer(),
  m: size,
  n: size,
  k: size,
  dtype: floats,
  ta: fc.boolean(),
  tb: fc.boolean(),
});

function operands(
  random: Random,
  c: { m: number; n: number; k: number; dtype: Float; ta: boolean; tb: boolean },
) {
  const a = random.matrix(c.ta ? c.k : c.m, c.ta ? c.m : c.k, 1, c.dtype);
  const b = random.matrix(c.tb ? c.n : c.k, c.tb ? c.k : c.n, 1, c.dtype);
  const product = multiply(c.ta ? transposed(a) : a, c.tb ? transposed(b) : b);
  return { a, b, product };
}

describe('gemm', () => {
  test('equals plain f64 loops for any sizes, transposes and dtype, and writes all of a poisoned out', async () => {
    await fc.assert(
      fc.asyncProperty(gemmCase, async (c) => {
        const { a, b, product } = operands(new Random(c.seed), c);
        const out = poisoned(device, c.dtype, [c.m, c.n]);
        await gemm(toTensor(device, c.dtype, a), toTensor(device, c.dtype, b), {
          transposeA: c.ta,
          transposeB: c.tb,
          out,
        });
        expect(relativeError(await valuesOf(out), product.data)).toBeLessThan(bounds[c.dtype]);
      }),
      { numRuns: 200 },
    );
  });

  test('alpha · A·B + beta · C', async () => {
    const random = new Random(4);
    for (const dtype of ['f32', 'f64', 'bf16', 'f16'] as const) {
      const { a, b, product } = operands(random, { m: 9, n: 7, k: 11, dtype, ta: false, tb: false });
      const c = random.matrix(9, 7, 1, dtype);
      const out = toTensor(device, dtype, c);
      await gemm(toTensor(device, dtype, a), toTensor(device, dtype, b), { alpha: 0.5, beta: -2, out });
      const wanted = product.data.map((v, i) => 0.5 * v - 2 * (c.data[i] as number));
      expect(relativeError(await valuesOf(out), wanted)).toBeLessThan(bounds[dtype]);
    }
  });

  test('halves may keep their f32 sums', async () => {
    const { a, b, product } = operands(new Random(5), {
      m: 20,
      n: 30,
      k: 200,
      dtype: 'bf16',
      ta: false,
      tb: true,
    });
    const out = poisoned(device, 'f32', [20, 30]);
    await gemm(toTensor(device, 'bf16', a), toTensor(device, 'bf16', b), { transposeB: true, out });
    expect(relativeError(await out.read(), product.data)).toBeLessThan(1e-6);
  });

  test('large products, split over the threads, equal their parts', async () => {
    const random = new Random(6);
    const a = toTensor(device, 'f32', random.matrix(300, 257));
    const b = toTensor(device, 'f32', random.matrix(257, 190));
    const whole = await (await gemm(a, b)).read();
    const rows = await (await gemm(a.rows(100, 200), b)).read();
    expect(
      relativeError(rows as Float32Array, (whole as Float32Array).subarray(100 * 190, 200 * 190)),
    ).toBeLessThan(1e-6);
  });
});

describe('batched and grouped gemm', () => {
  test('batchedGemm is gemm of every slice', async () => {
    await fc.assert(
      fc.asyncProperty(gemmCase, fc.integer({ min: 0, max: 5 }), async (c, batch) => {
        const random = new Random(c.seed);
        const parts = Array.from({ length: batch }, () => operands(random, c));
        const stacked = (pick: (p: { a: Matrix; b: Matrix }) => Matrix, rows: number, cols: number) =>
          toTensor(
            device,
            c.dtype,
            matrix(
              batch * rows,
              cols,
              parts.flatMap((p) => [...pick(p).data]),
            ),
          ).reshape([batch, rows, cols]);
        const a = stacked((p) => p.a, c.ta ? c.k : c.m, c.ta ? c.m : c.k);
        const b = stacked((p) => p.b, c.tb ? c.n : c.k, c.tb ? c.k : c.n);
        const out = poisoned(device, c.dtype, [batch, c.m, c.n]);
        await batchedGemm(a, b, { transposeA: c.ta, transposeB: c.tb, out });
        const wanted = parts.flatMap((p) => [...p.product.data]);
        expect(relativeError(await valuesOf(out), wanted)).toBeLessThan(bounds[c.dtype]);
      }),
      { numRuns: 60 },
    );
  });

  test('each product of a stack and of a group is added to what was there, each of a group by its own factors', async () => {
    const sizes = { m: 5, n: 6, k: 7, dtype: 'f64', ta: false, tb: true } as const;
    const factors = [
      { alpha: 1, beta: 0 },
      { alpha: 0.5, beta: -2 },
      { alpha: -3, beta: 1 },
    ];
    const random = new Random(8);
    const parts = factors.map(() => ({ ...operands(random, sizes), c: random.matrix(5, 6, 1, 'f64') }));
    const stacked = (pick: (part: (typeof parts)[number]) => Matrix, rows: number, cols: number) =>
      toTensor(
        device,
        'f64',
        matrix(
          3 * rows,
          cols,
          parts.flatMap((part) => [...pick(part).data]),
        ),
      ).reshape([3, rows, cols]);
    const a = stacked((part) => part.a, 5, 7);
    const b = stacked((part) => part.b, 6, 7);
    const sums = (of: (i: number) => { alpha: number; beta: number }) =>
      parts.flatMap(({ product, c }, i) =>
        Array.from(product.data, (v, at) => of(i).alpha * v + of(i).beta * (c.data[at] as number)),
      );

    const stack = stacked((part) => part.c, 5, 6);
    await batchedGemm(a, b, { transposeB: true, alpha: 0.25, beta: 3, out: stack });
    const same = sums(() => ({ alpha: 0.25, beta: 3 }));
    expect(relativeError(await valuesOf(stack), same)).toBeLessThan(bounds.f64);

    const group = stacked((part) => part.c, 5, 6);
    await groupedGemm(
      factors.map((of, i) => ({
        a: a.slice(i),
        b: b.slice(i),
        out: group.slice(i),
        transposeB: true,
        ...of,
      })),
    );
    const own = sums((i) => factors[i] as (typeof factors)[number]);
    expect(relativeError(await valuesOf(group), own)).toBeLessThan(bounds.f64);
  });

  test('groupedGemm takes problems of any shapes and dtypes at once', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(gemmCase, { maxLength: 9 }), async (cases) => {
        const problems = cases.map((c) => ({ ...c, ...operands(new Random(c.seed), c) }));
        const outs = await groupedGemm(
          problems.map(({ a, b, dtype, ta, tb }) => ({
            a: toTensor(device, dtype, a),
            b: toTensor(device, dtype, b),
            transposeA: ta,
            transposeB: tb,
          })),
        );
        for (const [i, out] of outs.entries()) {
          const p = problems[i];
          if (p) expect(relativeError(await valuesOf(out), p.product.data)).toBeLessThan(bounds[p.dtype]);
        }
        expect(outs).toHaveLength(problems.length);
      }),
      { numRuns: 40 },
    );
  });
});

/** The values in full: an f64 tensor's as they are. */
const valuesOf = async (tensor: Tensor): Promise<ArrayLike<number>> =>
  tensor.dtype === 'f64' ? tensor.read() : tensor.toFloat32();

const asMatrix = async (t: {
  shape: readonly number[];
  toFloat32(): Promise<Float32Array>;
  read(): Promise<ArrayLike<number>>;
}) => matrix(t.shape[0] as number, (t.shape[1] ?? 1) as number, (await t.read()) as ArrayLike<number>);

describe.each([
  ['f32', 2e-6],
  ['f64', 1e-13],
] as const)('decompositions in %s', (dtype, bound) => {
  test('svd: U·S·Vᵀ is the matrix, U and V have orthonormal columns, S is descending', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.integer(),
        fc.integer({ min: 1, max: 40 }),
        fc.integer({ min: 1, max: 40 }),
        async (seed, p, q) => {
          const a = new Random(seed).matrix(p, q, 1, dtype);
          const parts = await svd(toTensor(device, dtype, a));
          const [u, vt] = [await asMatrix(parts.u), await asMatrix(parts.vt)];
          const s = (await parts.s.read()) as Float64Array;
          const k = Math.min(p, q);
          const scaled = matrix(
            k,
            q,
            vt.data.map((v, i) => v * (s[Math.floor(i / q)] as number)),
          );
          expect(relativeError(multiply(u, scaled).data, a.data)).toBeLessThan(10 * bound);
          expect(relativeError(multiply(transposed(u), u).data, identity(k).data)).toBeLessThan(10 * bound);
          expect(relativeError(multiply(vt, transposed(vt)).data, identity(k).data)).toBeLessThan(10 * bound);
          expect([...s]).toEqual([...s].sort((x, y) => y - x));
        },
      ),
      { numRuns: 40 },
    );
  });

  test('eigh: every vector is an eigenvector of its value, vectors are orthonormal, any subset, only the lower triangle counts', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.integer(),
        fc.integer({ min: 1, max: 40 }),
        fc.double({ min: 0, max: 1, noNaN: true }),
        async (seed, n, share) => {
          const g = new Random(seed).matrix(n, n, 1, dtype);
          const a = matrix(n, n);
          for (let i = 0; i < n; i++)
            for (let j = 0; j <= i; j++)
              a.data[i * n + j] = a.data[j * n + i] = roundTo(dtype, g.data[i * n + j] as number);
          const lower = matrix(
            n,
            n,
            a.data.map((v, index) => (index % n > Math.floor(index / n) ? Number.NaN : v)),
          );
          lower.data.forEach((v, i) => {
            if (Number.isNaN(v)) lower.data[i] = 1e3;
          });
          const top = Math.floor(share * n);
          const result = await eigh(toTensor(device, dtype, lower), { top });
          const values = (await result.values.read()) as Float64Array;
          expect(values).toHaveLength(n);
          expect([...values]).toEqual([...values].sort((x, y) => y - x));
          const trace = a.data.reduce((sum, v, i) => (i % (n + 1) === 0 ? sum + v : sum), 0);
          const scale = Math.max(...values.map(Math.abs), 1e-30);
          expect(Math.abs([...values].reduce((x, y) => x + y, 0) - trace) / scale).toBeLessThan(50 * bound);
          const vectors = await asMatrix(result.vectors);
          expect(relativeError(multiply(vectors, transposed(vectors)).data, identity(top).data)).toBeLessThan(
            50 * bound,
          );
          const images = multiply(vectors, a);
          const wanted = vectors.data.map((v, i) => v * (values[Math.floor(i / n)] as number));
          expect(
            relativeError(
              images.data.map((v) => v / scale),
              wanted.map((v) => v / scale),
            ),
          ).toBeLessThan(200 * bound);
        },
      ),
      { numRuns: 40 },
    );
  });

  test('eigh of every sign and order of 2 × 2 gives the right one of two vectors', async () => {
    for (const [x, y, z] of [
      [3, 1, 2],
      [-3, 1, -2],
      [-1, -2, -3],
      [0.5, 0.1, -4],
    ] as const) {
      const a = matrix(2, 2, [x, y, y, z]);
      const result = await eigh(toTensor(device, dtype, a), { top: 1 });
      const v = await asMatrix(result.vectors);
      const value = ((await result.values.read()) as Float64Array)[0] as number;
      expect(
        relativeError(
          multiply(v, a).data,
          v.data.map((e) => e * value),
        ),
      ).toBeLessThan(10 * bound);
    }
  });

  test('eigh of zero, identity and repeated eigenvalues has orthonormal vectors', async () => {
    const diagonal = (values: number[]) =>
      matrix(
        values.length,
        values.length,
        values.flatMap((v, i) => values.map((_, j) => (i === j ? v : 0))),
      );
    for (const values of [
      [0, 0, 0, 0],
      [1, 1, 1],
      [2, 2, 5, 5, 5, -1],
    ]) {
      const result = await eigh(toTensor(device, dtype, diagonal(values)));
      expect([...((await result.values.read()) as Float64Array)]).toEqual([...values].sort((x, y) => y - x));
      const vectors = await asMatrix(result.vectors);
      expect(
        relativeError(multiply(vectors, transposed(vectors)).data, identity(values.length).data),
      ).toBeLessThan(bound);
    }
  });

  test('NaN and infinity are NON_FINITE with the position', async () => {
    for (const bad of [Number.NaN, Number.NEGATIVE_INFINITY]) {
      const a = matrix(5, 5);
      a.data[13] = bad;
      for (const call of [svd(toTensor(device, dtype, a)), eigh(toTensor(device, dtype, a))]) {
        await expect(call).rejects.toMatchObject({
          code: 'NON_FINITE',
          message: expect.stringContaining('[2, 3]'),
        });
      }
    }
  });
});

test('transpose moves every element of any dtype', async () => {
  for (const dtype of ['f32', 'f64', 'bf16', 'f16'] as const) {
    const a = new Random(8).matrix(37, 70, 1, dtype);
    const t = await transpose(toTensor(device, dtype, a));
    expect(t.shape).toEqual([70, 37]);
    expect([...(await t.toFloat32())]).toEqual([...transposed(a).data].map(Math.fround));
  }
});

describe('bad input', () => {
  const a = () => device.tensor('f32', new Float32Array(6), [2, 3]);
  test.each<[string, () => Promise<unknown>, string, RegExp]>([
    [
      'inner sizes that differ',
      () => gemm(a(), a()),
      'SHAPE_MISMATCH',
      /Inner sizes differ: a \[2, 3\], b \[2, 3\]/,
    ],
    [
      'mixed dtypes',
      () => gemm(a(), device.empty('f64', [3, 2])),
      'DTYPE_MISMATCH',
      /f32, the dtype of a, for b but received f64/,
    ],
    [
      'out of the wrong shape',
      () => gemm(a(), a(), { transposeB: true, out: device.empty('f32', [2, 3]) }),
      'SHAPE_MISMATCH',
      /\[2, 2\] for out but received \[2, 3\]/,
    ],
    [
      'out that is an operand',
      () => {
        const x = device.empty('f32', [2, 2]);
        return gemm(x, x, { out: x });
      },
      'INVALID_ARGUMENT',
      /shares memory/,
    ],
    [
      'out that is the first operand only',
      () => {
        const x = device.empty('f32', [2, 2]);
        return gemm(x, device.empty('f32', [2, 2]), { out: x });
      },
      'INVALID_ARGUMENT',
      /shares memory/,
    ],
    [
      'out that is the second operand only',
      () => {
        const x = device.empty('f32', [2, 2]);
        return gemm(device.empty('f32', [2, 2]), x, { out: x });
      },
      'INVALID_ARGUMENT',
      /shares memory/,
    ],
    [
      'beta without out',
      () => gemm(a(), a(), { transposeB: true, beta: 1 }),
      'INVALID_ARGUMENT',
      /beta needs out/,
    ],
    [
      'expert ids as numbers',
      () => gemm(device.empty('i32', [2, 2]), device.empty('i32', [2, 2])),
      'DTYPE_MISMATCH',
      /floating dtype/,
    ],
    [
      'no tensor at all',
      () => gemm([1, 2] as never, a()),
      'INVALID_ARGUMENT',
      /a Tensor for a but received \[1, 2\] of type Array/,
    ],
    ['svd of halves', () => svd(device.empty('bf16', [2, 2])), 'DTYPE_MISMATCH', /convert it first/],
    ['eigh of a rectangle', () => eigh(a()), 'SHAPE_MISMATCH', /square/],
    [
      'too many eigenvectors',
      () => eigh(device.empty('f32', [2, 2]), { top: 3 }),
      'INVALID_ARGUMENT',
      /0 to 2 for top/,
    ],
    [
      'batches that differ',
      () => batchedGemm(device.empty('f32', [2, 2, 2]), device.empty('f32', [3, 2, 2])),
      'SHAPE_MISMATCH',
      /Batches differ: a \[2, 2, 2\], b \[3, 2, 2\]/,
    ],
    [
      'a stack of results that is too small',
      () =>
        batchedGemm(device.empty('f32', [2, 2, 2]), device.empty('f32', [2, 2, 2]), {
          out: device.empty('f32', [1, 2, 2]),
        }),
      'SHAPE_MISMATCH',
      /shape \[2, any, any\] for out but received \[1, 2, 2\]/,
    ],
    [
      'slices that do not fit each other',
      () => batchedGemm(device.empty('f32', [2, 2, 3]), device.empty('f32', [2, 2, 3])),
      'SHAPE_MISMATCH',
      /Inner sizes differ: a \[2, 3\], b \[2, 3\]/,
    ],
    [
      'stacks that share memory with their results',
      () => {
        const x = device.empty('f32', [2, 2, 2]);
        return batchedGemm(x, device.empty('f32', [2, 2, 2]), { out: x });
      },
      'INVALID_ARGUMENT',
      /shares memory/,
    ],
    [
      'a product of a group, by its index',
      () =>
        groupedGemm([
          { a: a(), b: a(), transposeB: true },
          { a: a(), b: a() },
        ]),
      'SHAPE_MISMATCH',
      /^problems\[1\]: Inner sizes differ/,
    ],
  ])('%s', async (_, call, code, message) => {
    await expect(call()).rejects.toMatchObject({ code, message: expect.stringMatching(message) });
  });
});

function identity(n: number): Matrix {
  return matrix(
    n,
    n,
    Array.from({ length: n * n }, (_, i) => (i % (n + 1) === 0 ? 1 : 0)),
  );
}
