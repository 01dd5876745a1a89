import { checkClose } from '../lib/bench/check.ts';
import { exactValues, tensor } from '../lib/bench/data.ts';
import type { Timing } from '../lib/bench/yardstick.ts';
import { svd } from '../lib/linalg.ts';
import { startNumpy } from './peers/numpy.ts';
import type { Context, Question } from './support/context.ts';

async function measure(context: Context, rows: number, cols: number, dtype: 'f32' | 'f64'): Promise<void> {
  using a = tensor(context.device, dtype, [rows, cols], 1);
  const run = async () => {
    const { u, s, vt } = await svd(a);
    for (const factor of [u, s, vt]) factor.dispose();
  };
  const relativeError = await checkRows(a, rows, cols, dtype);
  const effort = { ...context.effort, minSamples: context.quick ? 2 : 3 };
  using peers = context.wantsPeers
    ? await startNumpy('gesdd', rows, cols, dtype, context.threads)
    : undefined;
  const timings: Record<string, Timing> = await context.timeTogether({ svd: run, ...peers?.calls }, effort);
  const timing = (name: string) => timings[name] as Timing;
  context.add({
    name: 'svd',
    shape: `${rows}x${cols}`,
    dtype,
    timing: timing('svd'),
    relativeError,
    peers: peers?.results((name) => timing(name).stats) ?? {},
  });
}

/** A few rows of U · diag(s) · Vᵀ against those of A. */
async function checkRows(
  a: ReturnType<typeof tensor<'f32' | 'f64'>>,
  rows: number,
  cols: number,
  dtype: 'f32' | 'f64',
) {
  const { u, s, vt } = await svd(a);
  const [left, sigma, right] = [await u.read(), await s.read(), await vt.read()];
  const inner = sigma.length;
  const original = exactValues(dtype, 1, rows * cols);
  let worst = 0;
  for (const row of [0, rows >> 1, rows - 1]) {
    const got = new Float64Array(cols);
    for (let k = 0; k < inner; k++) {
      const scale = (left[row * inner + k] as number) * (sigma[k] as number);
      for (let j = 0; j < cols; j++) (got[j] as number) += scale * (right[k * cols + j] as number);
    }
    const bound = dtype === 'f32' ? 1e-4 : 1e-12;
    worst = Math.max(worst, checkClose('svd', got, original.subarray(row * cols, (row + 1) * cols), bound));
  }
  for (const factor of [u, s, vt]) factor.dispose();
  return worst;
}

export const question: Question = {
  name: 'svd',
  asks: 'How long does a full singular value decomposition take?',
  minutes: { full: 2, quick: 0.3 },
  async run(context) {
    await measure(context, 512, 512, 'f32');
    await measure(context, 2048, 512, 'f32');
    await measure(context, 512, 512, 'f64');
    if (context.quick) return;
    await measure(context, 4096, 1024, 'f32');
    await measure(context, 4096, 1024, 'f64');
  },
};
