import { join } from 'node:path';
import { WrongResult } from '../lib/bench/check.ts';
import { values } from '../lib/bench/data.ts';
import { checkedExcess, factorizeGate, randomExperts } from '../lib/bench/factorization-speed.ts';
import { randomDense } from '../lib/bench/layers.ts';
import type { Call } from '../lib/bench/timing.ts';
import type { Timing } from '../lib/bench/yardstick.ts';
import { openCheckpoint } from '../lib/checkpoint/checkpoint.ts';
import { loadExperts } from '../lib/checkpoint/load-experts.ts';
import { DenseExperts } from '../lib/experts.ts';
import { factorizeExperts } from '../lib/factorization/factorize.ts';
import { svd } from '../lib/linalg.ts';
import { OPERATORS } from '../lib/operators.ts';
import { PACKAGE_ROOT } from '../lib/package.ts';
import type { Tensor } from '../lib/tensor.ts';
import { startNumpy } from './peers/numpy.ts';
import { type Context, goal, type Question } from './support/context.ts';

/** The least excess over the optimum that the goal allows, and a bound for bf16 factors, which are rounded. */
const EXCESS = 1e-6;

/** One operator of one group: ours by both solvers, and plain gesdd of the stack, over r. */
async function againstGesdd(
  context: Context,
  {
    n,
    m,
    k,
    ranks,
    dtype,
  }: { n: number; m: number; k: number; ranks: readonly number[]; dtype: 'f32' | 'bf16' },
): Promise<void> {
  const { device } = context;
  const effort = { ...context.effort, minSamples: context.quick ? 2 : 3 };
  using experts = randomExperts(device, n, m, k, dtype);
  using stack = device.empty('f32', [k * m, n]);
  for (let i = 0; i < k; i++) {
    using rows = stack.rows(i * m, (i + 1) * m);
    await rows.write(values('f32', i + 1, m * n, 1 / Math.sqrt(n)));
  }
  using numpy = context.wantsPeers ? await startNumpy('gesdd', k * m, n, 'f32', context.threads) : undefined;
  const excess: number[] = [];
  for (const r of ranks) excess.push(await checkedExcess(experts, k, r, 'gram'));
  const solvers = ranks.map((r) => ({ solver: 'gram', r }) as { solver: 'gram' | 'svd'; r: number });
  // The reference solver is slow and does not depend on r.
  solvers.push({ solver: 'svd', r: ranks[0] as number });
  const nameOf = ({ solver, r }: (typeof solvers)[number]) => `${solver} ${r}`;
  const calls = solvers.map((one): [string, Call] => [
    nameOf(one),
    () => factorizeGate(experts, k, one.r, one.solver),
  ]);
  const timings: Record<string, Timing> = await context.timeTogether(
    { gesdd: () => gesdd(stack), ...numpy?.calls, ...Object.fromEntries(calls) },
    effort,
  );
  const timing = (name: string) => timings[name] as Timing;
  const shape = `${k} × ${m}x${n}`;
  const peers = numpy?.results((name) => timing(name).stats) ?? {};
  context.add({
    name: 'gesdd of the stack',
    shape,
    dtype: 'f32',
    timing: timing('gesdd'),
    peers,
    data: { n, m, k, experts: dtype, solver: 'gesdd' },
  });
  for (const one of solvers) {
    const { solver, r } = one;
    const over = excess[ranks.indexOf(r)] as number;
    const ours = timing(nameOf(one));
    const least = timing('gesdd').stats;
    context.add({
      name: `factorize ${solver}`,
      shape: `${shape}, r ${r}`,
      dtype,
      timing: ours,
      peers: { gesdd: least, ...peers },
      data: { n, m, k, r, experts: dtype, solver, excess: over },
      goals: () =>
        solver === 'gram'
          ? [
              goal('gesdd / ours', least.medianMs / ours.stats.medianMs, 3, 4.5),
              goal('excess error', over, EXCESS, EXCESS / 10, true),
            ]
          : [],
    });
  }
}

async function gesdd(stack: Tensor<'f32'>): Promise<void> {
  for (const factor of Object.values(await svd(stack))) factor.dispose();
}

/** Fig. 2-like: all operators of all experts in groups of k at one r, relative error and seconds against k. */
async function overGroupSize(
  context: Context,
  name: string,
  experts: DenseExperts,
  r: number,
  groupSizes: readonly number[],
): Promise<void> {
  const { hiddenSize: n, intermediateSize: m, numExperts: N } = experts;
  const dtype = experts.gate[0]?.dtype as string;
  for (const k of groupSizes) {
    if (r > Math.min(n, k * m)) continue;
    const options = { groupSize: k, latentSize: r, dtype: 'f32' } as const;
    const latent = await factorizeExperts(experts, options);
    const errors = latent.report.map((group) => group.relativeError);
    const relativeError = Math.sqrt(errors.reduce((sum, e) => sum + e * e, 0) / errors.length);
    const optimal = latent.report.map((group) => group.optimalRelativeError);
    const excess = Math.max(...errors.map((e, i) => e - (optimal[i] as number)));
    latent.dispose();
    if (!(excess <= 1e-4)) throw new WrongResult(`factorize ${name}, k = ${k}: ${excess} above the optimum`);
    const timing = await context.time(async () => (await factorizeExperts(experts, options)).dispose(), {
      ...context.effort,
      minSamples: 2,
    });
    const data = { source: name, n, m, N, k, r, relativeError, excess };
    const shape = `n${n} m${m} N${N}, k ${k}, r ${r}: error ${relativeError.toFixed(4)}`;
    context.add({ name: `sweep over k, ${name}`, shape, dtype, timing, data });
  }
}

async function sweepOverGroupSize(context: Context): Promise<void> {
  const [n, m, N] = context.quick ? [256, 96, 16] : [1024, 352, 16];
  const { device } = context;
  using random = randomDense(
    device,
    { n, m, N },
    'bf16',
    (operator, expert) => 3 * expert + OPERATORS.indexOf(operator),
  );
  const sizes = [1, 2, 4, 8, 16];
  await overGroupSize(context, 'random', random, m / 2, sizes);

  const checkpoint = await openCheckpoint(join(PACKAGE_ROOT, 'test', 'fixtures', 'tiny-qwen2-moe'));
  try {
    const layer = checkpoint.spec.layers[1] as number;
    using trained = await loadExperts(checkpoint, layer, { device });
    if (!(trained instanceof DenseExperts)) throw new Error('The fixture has latent experts');
    await overGroupSize(context, 'trained (fixture)', trained, 48, sizes);
  } finally {
    await checkpoint.close();
  }
}

export const question: Question = {
  name: 'factorize',
  asks: 'How much faster than an SVD of the stacked experts is the factorization, at the same error?',
  minutes: { full: 4, quick: 0.6 },
  async run(context) {
    if (context.quick) {
      await againstGesdd(context, { n: 512, m: 352, k: 8, ranks: [128, 256, 352], dtype: 'f32' });
      await againstGesdd(context, { n: 512, m: 352, k: 8, ranks: [176], dtype: 'bf16' });
    } else {
      await againstGesdd(context, { n: 1024, m: 704, k: 8, ranks: [128, 256, 384, 512, 704], dtype: 'f32' });
      await againstGesdd(context, { n: 2048, m: 1408, k: 4, ranks: [704], dtype: 'bf16' });
      await againstGesdd(context, { n: 2048, m: 768, k: 16, ranks: [384], dtype: 'bf16' });
    }
    await sweepOverGroupSize(context);
  },
};
