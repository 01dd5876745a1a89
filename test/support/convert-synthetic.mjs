// Makes a checkpoint of Qwen1.5-MoE's layer shape, converts it with the built package, and prints the report and the
// peak memory as JSON. A process of its own, so that the peak is the conversion's and not vitest's.
import { mkdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { convertCheckpoint, SafetensorsWriter } from '../../dist/index.js';

const [folder, layersArgument, groupSize, latentSize] = process.argv.slice(2);
const layers = Number(layersArgument);
const config = {
  model_type: 'qwen2_moe',
  hidden_size: 2048,
  moe_intermediate_size: 1408,
  intermediate_size: 5632,
  shared_expert_intermediate_size: 64,
  num_experts: 60,
  num_experts_per_tok: 4,
  norm_topk_prob: false,
  num_hidden_layers: layers,
  hidden_act: 'silu',
  torch_dtype: 'bfloat16',
};

/** Small random bf16 numbers of both signs: a pool to cut tensors out of at random places. */
function randomPool(bytes) {
  const pool = new Uint16Array(bytes / 2);
  let state = 12345;
  for (let i = 0; i < pool.length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    pool[i] = 0x3c00 | ((state >>> 16) & 0x83ff); // ±2^-7 … ±2^-1
  }
  return new Uint8Array(pool.buffer);
}

const source = join(folder, 'source');
await mkdir(source, { recursive: true });
const tensors = [];
for (let layer = 0; layer < layers; layer++) {
  const prefix = `model.layers.${layer}.mlp`;
  const add = (name, ...shape) => tensors.push({ name: `${prefix}.${name}.weight`, dtype: 'BF16', shape });
  add('gate', 60, 2048);
  add('shared_expert_gate', 1, 2048);
  add('shared_expert.gate_proj', 64, 2048);
  add('shared_expert.up_proj', 64, 2048);
  add('shared_expert.down_proj', 2048, 64);
  for (let expert = 0; expert < 60; expert++) {
    add(`experts.${expert}.gate_proj`, 1408, 2048);
    add(`experts.${expert}.up_proj`, 1408, 2048);
    add(`experts.${expert}.down_proj`, 2048, 1408);
  }
}
const pool = randomPool(1408 * 2048 * 2 + 65536);
const writer = await SafetensorsWriter.create(join(source, 'model.safetensors'), tensors);
for (const [i, { name, shape }] of tensors.entries()) {
  const begin = ((i * 7919) % 32768) * 2;
  await writer.write(name, pool.subarray(begin, begin + 2 * shape[0] * shape[1]));
}
await writer.finish();
await writeFile(join(source, 'config.json'), JSON.stringify(config));

const report = await convertCheckpoint(source, join(folder, 'out'), {
  groupSize: Number(groupSize),
  latentSize: Number(latentSize),
});
await rm(source, { recursive: true });
console.log(JSON.stringify(report));
