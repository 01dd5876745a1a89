import { checkClose, multiply } from '../lib/bench/check.ts';
import { tensor } from '../lib/bench/data.ts';
import type { Call } from '../lib/bench/timing.ts';
import type { Timing } from '../lib/bench/yardstick.ts';
import { eigh, gemm } from '../lib/linalg.ts';
import { startNumpy } from './peers/numpy.ts';
import type { Context, Question } from './support/context.ts';

/** The Gram matrix of twice as many random rows: the spectrum of a stack of random experts. */
async function measure(
  context: Context,
  n: number,
  tops: readonly number[],
  dtype: 'f32' | 'f64',
): Promise<void> {
  using w = tensor(context.device, dtype, [2 * n, n], 1, 1 / Math.sqrt(n));
  using gram = await gemm(w, w, { transposeA: true });
  const effort = { ...context.effort, minSamples: context.quick ? 2 : 3 };
  const calls: Record<string, Call> = {};
  const errors = new Map<number, number>();
  for (const top of tops) {
    errors.set(top, await check(gram, n, top, dtype));
    calls[top] = async () => {
      const { values, vectors } = await eigh(gram, { top });
      values.dispose();
      vectors.dispose();
    };
  }
  using peers = context.wantsPeers ? await startNumpy('eigh', 2 * n, n, dtype, context.threads) : undefined;
  const timings: Record<string, Timing> = await context.timeTogether({ ...calls, ...peers?.calls }, effort);
  for (const top of tops) {
    context.add({
      name: 'eigh',
      shape: `${n}x${n}, top ${top}`,
      dtype,
      timing: timings[top] as Timing,
      relativeError: errors.get(top) as number,
      peers: peers?.results((name) => (timings[name] as Timing).stats) ?? {},
    });
  }
}

/** G v = λ v of the first and the last vector asked for. */
async function check(gram: Awaited<ReturnType<typeof gemm>>, n: number, top: number, dtype: 'f32' | 'f64') {
  const { values, vectors } = await eigh(gram, { top });
  const [lambda, v, g] = [await values.read(), await vectors.read(), await gram.read()];
  let worst = 0;
  for (const i of new Set([0, top - 1])) {
    const vector = v.subarray(i * n, (i + 1) * n);
    const wanted = Float64Array.from(vector, (x) => x * (lambda[i] as number));
    // Relative to the largest eigenvalue, as backward stability has it.
    const bound = ((dtype === 'f32' ? 1e-4 : 1e-12) * (lambda[0] as number)) / (lambda[i] as number);
    worst = Math.max(worst, checkClose('eigh', multiply(g, vector, n), wanted, bound));
  }
  values.dispose();
  vectors.dispose();
  return worst;
}

export const question: Question = {
  name: 'eigh',
  asks: 'How long does a symmetric eigen-decomposition take, and what does a subset save?',
  minutes: { full: 2, quick: 0.5 },
  async run(context) {
    await measure(context, 512, [128, 512], 'f32');
    await measure(context, 1024, [256, 1024], context.quick ? 'f32' : 'f64');
    if (context.quick) return;
    await measure(context, 2048, [512, 704, 2048], 'f32');
    await measure(context, 2048, [512, 704, 2048], 'f64');
  },
};
