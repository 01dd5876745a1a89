// One MoE layer in PyTorch, by the python that PYTHON names. Argument: a LayerTask as JSON. Prints a result for each way.
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { POOL_LENGTH, POOL_STRIDE } from '../../lib/bench/data.ts';
import { type LayerTask, PEERS } from '../support/peers.ts';
import { withLayerFiles } from './layer-files.ts';

const task = JSON.parse(process.argv[2] as string) as LayerTask;
const { n, m, N, K } = task.cell;
const { seconds, minSamples } = task.effort;
const args = [
  task.dtype,
  n,
  m,
  N,
  K,
  task.tokens,
  task.threads,
  task.layers,
  seconds,
  minSamples,
  POOL_LENGTH,
  POOL_STRIDE,
];
process.exitCode = withLayerFiles(task, (folder) => {
  const command = [join(PEERS, 'torch_layer.py'), folder, ...args.map(String)];
  const env = { ...process.env, OMP_NUM_THREADS: String(task.threads) };
  const run = spawnSync(process.env.PYTHON ?? 'python3', command, {
    env,
    stdio: ['ignore', 'inherit', 'inherit'],
  });
  if (run.error) process.stderr.write(`${run.error.message}\n`);
  return run.status ?? 1;
});
