import { type Absent, onlyWay, orAbsent, type Peer, Peers } from '../support/peers.ts';
import type { TurnProcess } from '../support/turn-process.ts';
import { startGgml } from './ggml.ts';
import type { LayerTask } from './layer-task.ts';
import { startOnnxruntime } from './onnxruntime.ts';
import { startTorch, type TorchWay, type TorchWays } from './torch.ts';

export type LayerPeer = 'onnxruntime' | 'llama.cpp' | 'PyTorch loop' | 'PyTorch grouped_mm';

/** How many times as fast as each our dense layer must be, and is aimed to be. */
export const LAYER_PEER_GOALS: Readonly<Record<LayerPeer, readonly [must: number, aim: number]>> = {
  onnxruntime: [1.3, 1.5],
  'llama.cpp': [1.2, 1.5],
  'PyTorch loop': [2, 3],
  'PyTorch grouped_mm': [2, 3],
};

/** Every peer that runs whole layers: a turn is a pass over all of them. They get ready one by one, as that takes memory. */
export async function startLayerPeers(task: LayerTask): Promise<Peers<LayerPeer>> {
  const onnxruntime = await orAbsent(() => startOnnxruntime(task));
  const ggml = await orAbsent(() => startGgml(task));
  const torch = await orAbsent(() => startTorch(task));
  const ways = {
    onnxruntime: onlyWay(onnxruntime),
    'llama.cpp': onlyWay(ggml),
    'PyTorch loop': torchWay(torch, 'loop'),
    'PyTorch grouped_mm': torchWay(torch, 'grouped_mm'),
  };
  return new Peers(ways, [onnxruntime, ggml, torch]);
}

function torchWay(torch: TurnProcess<TorchWays> | Absent, way: TorchWay): Peer | Absent {
  if ('absent' in torch) return torch;
  const { version, absent } = torch.ready;
  const reason = absent[way];
  return reason === undefined ? { version, call: () => torch.time(way) } : { absent: reason };
}
