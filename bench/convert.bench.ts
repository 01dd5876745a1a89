import { cp, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { WrongResult } from '../lib/bench/check.ts';
import { values } from '../lib/bench/data.ts';
import { SafetensorsWriter, type TensorDeclaration } from '../lib/checkpoint/safetensors/writer.ts';
import { convertCheckpoint } from '../lib/conversion/convert.ts';
import { PACKAGE_ROOT } from '../lib/package.ts';
import type { Context, Question } from './support/context.ts';

/** A layer of Qwen1.5-MoE with fewer experts. */
interface Shape {
  readonly N: number;
  readonly k: number;
  readonly r: number;
}

const [n, m, K] = [2048, 1408, 4];
/** Experts of the real layer. */
const REAL_N = 60;

async function writeCheckpoint(folder: string, { N }: Shape): Promise<number> {
  await mkdir(folder, { recursive: true });
  const config = {
    model_type: 'qwen2_moe',
    hidden_size: n,
    moe_intermediate_size: m,
    intermediate_size: 4 * m,
    shared_expert_intermediate_size: 64,
    num_experts: N,
    num_experts_per_tok: Math.min(K, N),
    norm_topk_prob: false,
    num_hidden_layers: 1,
    hidden_act: 'silu',
    torch_dtype: 'bfloat16',
  };
  await writeFile(join(folder, 'config.json'), JSON.stringify(config));
  const sizes: [string, number, number][] = [
    ['gate', N, n],
    ['shared_expert_gate', 1, n],
    ['shared_expert.gate_proj', 64, n],
    ['shared_expert.up_proj', 64, n],
    ['shared_expert.down_proj', n, 64],
  ];
  for (let expert = 0; expert < N; expert++) {
    sizes.push([`experts.${expert}.gate_proj`, m, n], [`experts.${expert}.up_proj`, m, n]);
    sizes.push([`experts.${expert}.down_proj`, n, m]);
  }
  const tensors = sizes.map(
    ([name, ...shape]): TensorDeclaration => ({
      name: `model.layers.0.mlp.${name}.weight`,
      dtype: 'BF16',
      shape,
    }),
  );
  const writer = await SafetensorsWriter.create(join(folder, 'model.safetensors'), tensors);
  for (const [seed, { name, shape }] of tensors.entries()) {
    const [rows, cols] = shape as [number, number];
    const data = values('bf16', seed, rows * cols, 1 / Math.sqrt(cols));
    await writer.write(name, new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  }
  await writer.finish();
  return sizes.reduce((sum, [, rows, cols]) => sum + 2 * rows * cols, 0);
}

async function measure(context: Context, shape: Shape): Promise<void> {
  const { N, k, r } = shape;
  // The system's folder for temporary files may be in memory.
  const folder = await mkdtemp(join(PACKAGE_ROOT, 'build', 'bench', 'convert-'));
  try {
    const [source, output, copy] = [join(folder, 'source'), join(folder, 'out'), join(folder, 'copy')];
    const sourceBytes = await writeCheckpoint(source, shape);
    const convert = () =>
      convertCheckpoint(source, output, { groupSize: k, latentSize: r, device: context.device, force: true });
    const report = await convert();
    const excess = Math.max(...report.layers.map((row) => row.relativeError - row.optimalRelativeError));
    // Factors are stored in bf16.
    if (!(excess <= 1e-3)) throw new WrongResult(`convert: ${excess} above the optimum`);

    const effort = { ...context.effort, minSamples: context.quick ? 2 : 3 };
    const { convert: timing, copied } = await context.timeTogether(
      { convert, copied: () => cp(source, copy, { recursive: true, force: true }) },
      effort,
    );
    // The least that it costs: one triangle of a Gram matrix [n, n] for each matrix of each expert, at sgemm's speed; what it
    // reads and writes, at the speed of copying files.
    const gramFlops = 3 * N * m * n * n;
    const bytes = sourceBytes + report.bytes.after;
    const gramSeconds = gramFlops / timing.ceilings.sgemmGflops / 1e9;
    const diskSeconds = (bytes / (2 * sourceBytes)) * (copied.stats.medianMs / 1000);
    const seconds = timing.stats.medianMs / 1000;
    context.add({
      name: 'convert',
      shape: `n${n} m${m} N${N} (of ${REAL_N}) k${k} r${r}: ${seconds.toFixed(2)} s, of which Gram at sgemm ${gramSeconds.toFixed(2)} s, files ${diskSeconds.toFixed(2)} s`,
      dtype: 'bf16',
      timing,
      flops: gramFlops,
      bytes,
      peers: { 'copy of the files': copied.stats },
      data: { n, m, N, realN: REAL_N, k, r, gramSeconds, diskSeconds, excess },
    });
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

export const question: Question = {
  name: 'convert',
  asks: 'How far from the limits of the processor and of the disk is the conversion of a layer?',
  minutes: { full: 1, quick: 0.5 },
  async run(context) {
    await measure(context, { N: 4, k: 4, r: 704 });
    if (!context.quick) await measure(context, { N: 15, k: 15, r: 704 });
  },
};
