import { POOL_LENGTH, POOL_STRIDE } from '../../lib/bench/data.ts';
import type { TurnProcess } from '../support/turn-process.ts';
import { withLayerFiles } from './layer-files.ts';
import type { LayerTask } from './layer-task.ts';
import { startPython } from './python.ts';

export type TorchWay = 'loop' | 'grouped_mm';

/** Of what each turn may name; a way that its version lacks says why. */
export interface TorchWays {
  readonly version: string;
  readonly absent: Readonly<Partial<Record<TorchWay, string>>>;
}

/** One MoE layer in PyTorch on the CPU: a loop over experts, and `torch._grouped_mm`. */
export function startTorch(task: LayerTask): Promise<TurnProcess<TorchWays>> {
  const { n, m, N, K } = task.cell;
  const sizes = [n, m, N, K, task.tokens, task.threads, task.layers, POOL_LENGTH, POOL_STRIDE];
  return withLayerFiles(task, (folder) =>
    startPython('torch_layer.py', [folder, task.dtype, ...sizes], task.threads),
  );
}
