import { tensor } from '../lib/bench/data.ts';
import { factorizeCalibrated, type LayerInputs } from '../lib/calibrated.ts';
import { DenseExperts } from '../lib/experts.ts';
import { factorizeExperts } from '../lib/factorize.ts';
import { route } from '../lib/routing.ts';
import type { Tensor } from '../lib/tensor.ts';
import type { Context, Question } from './support/context.ts';

/** A layer of Qwen1.5-MoE with the experts of one group of 15. */
const [n, m, K, REAL_N] = [2048, 1408, 4, 60];

interface Shape {
  readonly N: number;
  readonly r: number;
  readonly tokens: number;
}

function randomExperts({ device }: Context, N: number): DenseExperts {
  const draw = (seed: number, rows: number, cols: number) =>
    Array.from({ length: N }, (_, i) => tensor(device, 'bf16', [rows, cols], seed + i, 1 / Math.sqrt(cols)));
  const [gate, up, down] = [draw(1, m, n), draw(1001, m, n), draw(2001, n, m)];
  return new DenseExperts({ gate, up, down, owned: [...gate, ...up, ...down] });
}

async function randomInputs({ device }: Context, { N, tokens }: Shape): Promise<LayerInputs> {
  using logits = tensor(device, 'f32', [tokens, N], 3001, 1);
  const routing = await route(logits, { scoring: 'softmax', topK: Math.min(K, N), renormalize: false });
  return { x: tensor(device, 'f32', [tokens, n], 3002, 1) as Tensor<'f32'>, routing };
}

async function measure(context: Context, shape: Shape): Promise<void> {
  const { N, r, tokens } = shape;
  using experts = randomExperts(context, N);
  const inputs = await randomInputs(context, shape);
  const options = { groupSize: N, latentSize: r };
  const effort = { ...context.effort, minSamples: 1 };
  const stats = await context.timeTogether(
    {
      calibrated: async () => (await factorizeCalibrated(experts, inputs, options)).dispose(),
      plain: async () => (await factorizeExperts(experts, options)).dispose(),
    },
    effort,
  );
  inputs.x.dispose();
  inputs.routing.ids.dispose();
  inputs.routing.weights.dispose();
  const slots = tokens * Math.min(K, N);
  // Outputs of the experts, both triangles' worth of one moment of inputs and two of weights, cross moments and factors.
  const flops =
    slots * (6 * m * n + n * n + 8 * n * r) + N * (2 * m * n * n + 8 * m * n * r) + tokens * n * n;
  const seconds = stats.calibrated.medianMs / 1000;
  context.add({
    name: 'calibrated factorization',
    shape: `n${n} m${m} N${N} (of ${REAL_N}) k${N} r${r}: ${seconds.toFixed(1)} s, ${(seconds / (stats.plain.medianMs / 1000)).toFixed(2)} × plain`,
    tokens,
    dtype: 'bf16',
    stats: stats.calibrated,
    flops,
    peers: { 'plain stacked SVD': stats.plain },
    data: { n, m, N, realN: REAL_N, k: N, r },
  });
}

export const question: Question = {
  name: 'calibrated',
  asks: 'What does calibrated factorization of a layer take, and how much more than plain stacked SVD?',
  minutes: { full: 2, quick: 0.5 },
  async run(context) {
    await measure(context, { N: 4, r: 704, tokens: context.quick ? 2048 : 4096 });
    if (!context.quick) await measure(context, { N: 15, r: 704, tokens: 15_360 });
  },
};
