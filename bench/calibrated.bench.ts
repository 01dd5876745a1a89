import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { tensor } from '../lib/bench/data.ts';
import { randomDense } from '../lib/bench/layers.ts';
import { convertCalibrated } from '../lib/conversion/calibrated/convert.ts';
import { convertCheckpoint } from '../lib/conversion/convert.ts';
import { factorizeCalibrated } from '../lib/factorization/calibrated.ts';
import type { LayerInputs } from '../lib/factorization/calibrated-group.ts';
import { factorizeExperts } from '../lib/factorization/factorize.ts';
import { calibrate } from '../lib/model/calibration.ts';
import { Model } from '../lib/model/model.ts';
import { Tokenizer } from '../lib/model/tokenizer.ts';
import { sampleWindows } from '../lib/model/windows.ts';
import type { Operator } from '../lib/operators.ts';
import { PACKAGE_ROOT } from '../lib/package.ts';
import { route } from '../lib/routing.ts';
import type { Tensor } from '../lib/tensor.ts';
import { type Context, goal, type Question } from './support/context.ts';

/** A layer of Qwen1.5-MoE with the experts of one group of 15. */
const [n, m, K, REAL_N] = [2048, 1408, 4, 60];

interface Shape {
  readonly N: number;
  readonly r: number;
  readonly tokens: number;
}

/** Of the matrices of the first expert; one more for each of the next. */
const SEEDS: Readonly<Record<Operator, number>> = { gate: 1, up: 1001, down: 2001 };

async function randomInputs({ device }: Context, { N, tokens }: Shape): Promise<LayerInputs> {
  using logits = tensor(device, 'f32', [tokens, N], 3001, 1);
  const routing = await route(logits, { scoring: 'softmax', topK: Math.min(K, N), renormalize: false });
  return { x: tensor(device, 'f32', [tokens, n], 3002, 1) as Tensor<'f32'>, routing };
}

async function measure(context: Context, shape: Shape): Promise<void> {
  const { N, r, tokens } = shape;
  using experts = randomDense(
    context.device,
    { n, m, N },
    'bf16',
    (operator, expert) => SEEDS[operator] + expert,
  );
  const inputs = await randomInputs(context, shape);
  const options = { groupSize: N, latentSize: r };
  const effort = { ...context.effort, minSamples: 1 };
  const timings = await context.timeTogether(
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
  // Outputs of the experts and one triangle of their moments, of inputs (from which factors are fitted: an expert sees
  // more than n tokens), of weights and of the group's output; cross moments and factors.
  const flops =
    slots * (6 * m * n + n * n) + N * (2 * m * n * n + 4 * n * n * r + 8 * m * n * r) + tokens * n * n;
  const seconds = timings.calibrated.stats.medianMs / 1000;
  context.add({
    name: 'calibrated factorization',
    shape: `n${n} m${m} N${N} (of ${REAL_N}) k${N} r${r}: ${seconds.toFixed(1)} s, ${(seconds / (timings.plain.stats.medianMs / 1000)).toFixed(2)} × plain`,
    tokens,
    dtype: 'bf16',
    timing: timings.calibrated,
    flops,
    peers: { 'plain stacked SVD': timings.plain.stats },
    data: { n, m, N, realN: REAL_N, k: N, r },
  });
}

/** The test model, whose experts were trained, and the text that it is calibrated on. */
const CHECKPOINT = join(PACKAGE_ROOT, 'test', 'fixtures', 'tiny-qwen2-moe');
const TEXT = join(PACKAGE_ROOT, 'node_modules', '@stdlib', 'datasets-moby-dick', 'data', 'data.txt');

/** Its whole default conversion, against plain conversion and the pass over the text that it cannot do without. */
async function measureConversion(context: Context): Promise<void> {
  const { device } = context;
  const tokenizer = await Tokenizer.open(CHECKPOINT);
  const text = (await readFile(TEXT, 'utf8')).replace(/[^\n\x20-\x7e]/g, '');
  const calibration = sampleWindows(tokenizer.encode(text), context.quick ? 4096 : 16_384, 256);
  // The system's folder for temporary files may be in memory.
  const folder = await mkdtemp(join(PACKAGE_ROOT, 'build', 'bench', 'calibrated-'));
  try {
    const common = { targetRatio: 0.35, device, force: true };
    const timings = await context.timeTogether(
      {
        calibrated: () =>
          convertCalibrated(CHECKPOINT, join(folder, 'calibrated'), { ...common, calibration }),
        plain: () => convertCheckpoint(CHECKPOINT, join(folder, 'plain'), common),
        pass: () => passOver(calibration, device),
      },
      { ...context.effort, minSamples: context.quick ? 2 : 5 },
    );
    const seconds = (of: keyof typeof timings) => timings[of].stats.medianMs / 1000;
    const ofLimit = seconds('calibrated') / (5 * seconds('plain') + seconds('pass'));
    const figures = (['calibrated', 'plain', 'pass'] as const).map(
      (of) => `${of} ${seconds(of).toFixed(2)} s`,
    );
    context.add({
      name: 'calibrated conversion',
      shape: `tiny-qwen2-moe: ${figures.join(', ')}, ${ofLimit.toFixed(2)} × (5 plain + pass)`,
      tokens: calibration.length,
      dtype: 'bf16',
      timing: timings.calibrated,
      peers: { 'plain conversion': timings.plain.stats, 'pass over the text': timings.pass.stats },
      goals: () => [goal('of 5 plain conversions and the pass', ofLimit, 1, 0.8, true)],
      data: { targetRatio: 0.35 },
    });
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

async function passOver(ids: readonly number[], device: Context['device']): Promise<void> {
  await using model = await Model.open(CHECKPOINT, { device, stream: true });
  await calibrate(model, ids, async () => undefined);
}

export const question: Question = {
  name: 'calibrated',
  asks: 'What does calibrated factorization of a layer, and of a model, take, and how much more than plain stacked SVD?',
  minutes: { full: 3, quick: 0.7 },
  async run(context) {
    await measureConversion(context);
    await measure(context, { N: 4, r: 704, tokens: context.quick ? 2048 : 4096 });
    if (!context.quick) await measure(context, { N: 15, r: 704, tokens: 15_360 });
  },
};
