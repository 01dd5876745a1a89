import { makeBatch, makeRoute } from '../lib/bench/batches.ts';
import { TINY_CELL } from '../lib/bench/call-speed.ts';
import { tensor } from '../lib/bench/data.ts';
import { denseLayer, latentLayer } from '../lib/bench/layers.ts';
import { checkLayer } from '../lib/bench/reference.ts';
import { type Call, timeEachCall } from '../lib/bench/timing.ts';
import { gemm } from '../lib/linalg.ts';
import { type Context, goal, type Question } from './support/context.ts';

/** Benchmark.js for the figure; single calls, timed one by one, for the quantiles of latency. */
async function measure(
  context: Context,
  name: string,
  shape: string,
  tokens: number | null,
  call: Call,
  limits?: { readonly must: number; readonly aim: number },
): Promise<void> {
  const timing = await context.timeCalls(call, { seconds: context.quick ? 1 : 3, minSamples: 30 });
  const each = await timeEachCall(call, context.quick ? 5_000 : 20_000);
  const us = (ms: number) => Math.round(1e5 * ms) / 100;
  context.add({
    name,
    shape,
    tokens,
    dtype: 'f32',
    timing,
    data: { callP50Us: us(each.medianMs), callP99Us: us(each.p99Ms) },
    goals: () =>
      limits ? [goal('µs a call', us(timing.stats.medianMs), limits.must, limits.aim, true)] : [],
  });
}

export const question: Question = {
  name: 'call-overhead',
  asks: 'What does a call from JavaScript cost, without any work?',
  minutes: { full: 1.3, quick: 0.6 },
  async run(context) {
    const { device } = context;
    for (const kind of ['dense', 'latent'] as const) {
      using layer = (kind === 'dense' ? denseLayer : latentLayer)(device, TINY_CELL, 'f32');
      for (const tokens of [0, 1]) {
        const batch = makeBatch(device, TINY_CELL, tokens, makeRoute(tokens, TINY_CELL, 1));
        const { x, routing, out } = batch;
        if (tokens > 0) await checkLayer(layer, TINY_CELL, 'f32', batch);
        const limits = (must: number) => (tokens === 0 ? { must, aim: must } : undefined);
        const shape = `${kind}, T = ${tokens}`;
        await measure(
          context,
          'forwardSync',
          shape,
          tokens,
          () => layer.forwardSync(x, routing, { out }),
          limits(5),
        );
        await measure(
          context,
          'forward',
          shape,
          tokens,
          () => layer.forward(x, routing, { out }),
          limits(40),
        );
        batch.dispose();
      }
    }
    using a = tensor(device, 'f32', [1, 1], 1);
    using out = device.empty('f32', [1, 1]);
    await measure(context, 'gemm', '1x1 · 1x1', null, () => gemm(a, a, { out }));
    const numbers = new Float32Array(16);
    await measure(context, 'tensor + dispose', '16', null, () => device.tensor('f32', numbers).dispose());
  },
};
