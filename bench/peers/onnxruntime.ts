import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Failure } from '../support/failure.ts';
import { TurnProcess } from '../support/turn-process.ts';
import { peerPackage } from './folders.ts';
import type { LayerTask } from './layer-task.ts';

const SCRIPT = join(dirname(fileURLToPath(import.meta.url)), 'onnxruntime-process.js');

/** com.microsoft.MoE of onnxruntime-node: dense experts. */
export async function startOnnxruntime(task: LayerTask): Promise<TurnProcess<{ readonly version: string }>> {
  peerPackage('onnxruntime-node');
  if (task.dtype !== 'f32') throw new Failure('its MoE operator takes f32 only on the CPU');
  return TurnProcess.start(process.execPath, [SCRIPT, JSON.stringify(task)]);
}
