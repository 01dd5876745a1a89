// Converts one MoE layer of DeepSeek-V3's shape (n 7168, m 2048, FP8 with block scales; a few experts in place of 256) and
// holds the peak memory of the process against the bound that molae promises: one expert, 24 n² bytes, one group's factors
// and 300 MB. Needs the built package, 1 GB of disk and, mostly for the eigenvectors of 7168 x 7168, some minutes an operator.
//
//   node test/endurance/memory.mjs [--experts 4] [--latent-size 2048] [--operators up] [--package dist]
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';

const { values } = parseArgs({
  options: {
    experts: { type: 'string', default: '4' },
    'latent-size': { type: 'string', default: '2048' },
    operators: { type: 'string', default: 'up' },
    package: { type: 'string', default: fileURLToPath(new URL('../../dist', import.meta.url)) },
  },
});
const load = (path) => import(pathToFileURL(resolve(values.package, path)).href);
const { convertCheckpoint, SafetensorsWriter } = await load('index.js');

const [n, m, block] = [7168, 2048, 128];
const [N, r] = [Number(values.experts), Number(values['latent-size'])];
const config = {
  model_type: 'deepseek_v3',
  hidden_size: n,
  moe_intermediate_size: m,
  n_routed_experts: N,
  n_shared_experts: 1,
  num_experts_per_tok: 2,
  num_hidden_layers: 1,
  first_k_dense_replace: 0,
  n_group: 1,
  topk_group: 1,
  hidden_act: 'silu',
  quantization_config: { quant_method: 'fp8', fmt: 'e4m3', weight_block_size: [block, block] },
};

const folder = await mkdtemp(join(tmpdir(), 'molae-memory-'));
try {
  const source = join(folder, 'source');
  await mkdir(source);
  await writeFile(join(source, 'config.json'), JSON.stringify(config));
  const prefix = 'model.layers.0.mlp';
  const tensors = [
    { name: `${prefix}.gate.weight`, dtype: 'BF16', shape: [N, n] },
    { name: `${prefix}.gate.e_score_correction_bias`, dtype: 'F32', shape: [N] },
  ];
  for (const owner of ['shared_experts', ...Array.from({ length: N }, (_, e) => `experts.${e}`)]) {
    for (const [operator, rows, cols] of [
      ['gate', m, n],
      ['up', m, n],
      ['down', n, m],
    ]) {
      const name = `${prefix}.${owner}.${operator}_proj.weight`;
      tensors.push({ name, dtype: 'F8_E4M3', shape: [rows, cols] });
      tensors.push({ name: `${name}_scale_inv`, dtype: 'F32', shape: [rows / block, cols / block] });
    }
  }
  // Codes of about the same size and both signs: a pool to cut tensors out of at different places.
  const pool = new Uint8Array(n * m + 65536);
  let state = 12345;
  for (let i = 0; i < pool.length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    pool[i] = 0x30 | ((state >>> 16) & 0x8f);
  }
  const writer = await SafetensorsWriter.create(join(source, 'model.safetensors'), tensors);
  for (const [index, { name, dtype, shape }] of tensors.entries()) {
    const elements = shape.reduce((a, b) => a * b);
    const begin = (index * 7919) % 65536;
    if (dtype === 'F8_E4M3') await writer.write(name, pool.subarray(begin, begin + elements));
    else if (dtype === 'F32')
      await writer.write(name, new Uint8Array(new Float32Array(elements).fill(0.01).buffer));
    else await writer.write(name, new Uint8Array(2 * elements));
  }
  await writer.finish();
  const report = await convertCheckpoint(source, join(folder, 'out'), {
    groupSize: N,
    latentSize: r,
    operators: values.operators.split(','),
  });
  const bound = 2 * m * n + 24 * n ** 2 + 2 * (N * m * r + r * n) + 300e6;
  const { peakBytes, seconds, layers } = report;
  console.log(JSON.stringify({ experts: N, latentSize: r, peakBytes, bound, seconds, layers }));
  process.exitCode = peakBytes < bound ? 0 : 1;
} finally {
  await rm(folder, { recursive: true, force: true });
}
