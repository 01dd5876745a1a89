import { checkClose, checkFinite, multiply } from '../lib/bench/check.ts';
import { type BenchDType, exactValues, poisoned, tensor } from '../lib/bench/data.ts';
import { gemm } from '../lib/linalg.ts';
import { type Context, goal, type Question } from './support/context.ts';

interface Cell {
  readonly m: number;
  readonly n: number;
  readonly k: number;
  readonly dtype: BenchDType;
  readonly transposeB?: boolean;
}

const quick: readonly Cell[] = [
  { m: 64, n: 64, k: 64, dtype: 'f32' },
  { m: 1024, n: 1024, k: 1024, dtype: 'f32' },
  { m: 2048, n: 2048, k: 2048, dtype: 'f32' },
  { m: 16, n: 1408, k: 2048, dtype: 'f32', transposeB: true },
  { m: 1024, n: 1024, k: 1024, dtype: 'bf16', transposeB: true },
  { m: 1024, n: 1024, k: 1024, dtype: 'f64' },
];

const full: readonly Cell[] = [
  ...quick,
  { m: 256, n: 256, k: 256, dtype: 'f32' },
  { m: 1, n: 1408, k: 2048, dtype: 'f32', transposeB: true },
  { m: 128, n: 1408, k: 2048, dtype: 'f32', transposeB: true },
  { m: 512, n: 1408, k: 2048, dtype: 'f32', transposeB: true },
  { m: 512, n: 1408, k: 2048, dtype: 'bf16', transposeB: true },
  { m: 1, n: 1408, k: 2048, dtype: 'bf16', transposeB: true },
  { m: 2048, n: 2048, k: 2048, dtype: 'f64' },
];

const bounds: Record<BenchDType, number> = { f32: 1e-5, f64: 1e-13, bf16: 4e-3 };

async function measure(context: Context, { m, n, k, dtype, transposeB = false }: Cell): Promise<void> {
  const { device } = context;
  using a = tensor(device, dtype, [m, k], 1);
  using b = tensor(device, dtype, transposeB ? [n, k] : [k, n], 2);
  using out = poisoned(device, dtype, [m, n]);
  const run = () => gemm(a, b, { transposeB, out });
  await run();
  const c = await out.toFloat32();
  checkFinite('gemm', c);
  const left = exactValues(dtype, 1, m * k);
  const right = exactValues(dtype, 2, k * n);
  let relativeError = 0;
  for (const row of new Set([0, m >> 1, m - 1])) {
    const x = left.subarray(row * k, (row + 1) * k);
    const wanted = transposeB ? multiply(right, x, n) : multiplyLeft(x, right, n);
    // toFloat32 rounds f64 results.
    const bound = dtype === 'f64' ? 1e-7 : bounds[dtype];
    relativeError = Math.max(
      relativeError,
      checkClose('gemm', c.subarray(row * n, (row + 1) * n), wanted, bound),
    );
  }
  const size = dtype === 'f64' ? 8 : dtype === 'f32' ? 4 : 2;
  context.add({
    name: 'gemm',
    shape: `${m}x${k} · ${transposeB ? `(${n}x${k})ᵀ` : `${k}x${n}`}`,
    tokens: m,
    dtype,
    timing: await context.time(run),
    flops: 2 * m * n * k,
    bytes: size * (m * k + k * n + m * n),
    relativeError,
    goals: ({ ofSgemm }) => (dtype === 'f32' && m >= 1024 ? [goal('of sgemm', ofSgemm ?? 0, 0.95, 1)] : []),
  });
}

/** x · W of W [x.length, cols] in f64. */
function multiplyLeft(x: ArrayLike<number>, w: ArrayLike<number>, cols: number): Float64Array {
  const y = new Float64Array(cols);
  for (let i = 0; i < x.length; i++) {
    const scale = x[i] as number;
    for (let j = 0, at = i * cols; j < cols; j++, at++) (y[j] as number) += scale * (w[at] as number);
  }
  return y;
}

export const question: Question = {
  name: 'gemm',
  asks: 'How close does one matrix product come to the FMA peak?',
  minutes: { full: 1, quick: 0.3 },
  async run(context) {
    for (const cell of context.quick ? quick : full) await measure(context, cell);
  },
};
