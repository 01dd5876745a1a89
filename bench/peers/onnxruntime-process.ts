// One com.microsoft.MoE node in onnxruntime-node, as a process of its own. Argument: a LayerTask as JSON.
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { makeRoute } from '../../lib/bench/batches.ts';
import { checkClose, checkFinite } from '../../lib/bench/check.ts';
import { values } from '../../lib/bench/data.ts';
import { seeds } from '../../lib/bench/layers.ts';
import { denseReference } from '../../lib/bench/reference.ts';
import { once } from '../../lib/bench/timing.ts';
import { routerLogits } from '../support/router-logits.ts';
import { PEERS } from './folders.ts';
import type { LayerTask } from './layer-task.ts';

/** The part of onnxruntime-node that is used here; its own types are only there where it is installed. */
interface OnnxRuntime {
  readonly Tensor: new (
    type: 'float32',
    data: Float32Array,
    dims: readonly number[],
  ) => { readonly data: Float32Array };
  readonly InferenceSession: {
    create(model: Uint8Array, options: object): Promise<Session>;
  };
  readonly env: { readonly versions: Readonly<Record<string, string>> };
}

interface Session {
  run(feeds: object): Promise<Readonly<Record<string, { readonly data: Float32Array }>>>;
}

/** The wire format of protocol buffers, as far as an ONNX model needs it. */
const wire = {
  varint(value: number): Buffer {
    const bytes: number[] = [];
    for (let rest = BigInt(value); ; ) {
      const low = Number(rest & 127n);
      rest >>= 7n;
      bytes.push(rest > 0n ? low | 128 : low);
      if (rest === 0n) return Buffer.from(bytes);
    }
  },
  int(field: number, value: number): Buffer {
    return Buffer.concat([wire.varint(field << 3), wire.varint(value)]);
  },
  bytes(field: number, value: Buffer | string): Buffer {
    const payload = Buffer.from(value as string);
    return Buffer.concat([wire.varint((field << 3) | 2), wire.varint(payload.length), payload]);
  },
  float(field: number, value: number): Buffer {
    const payload = Buffer.alloc(4);
    payload.writeFloatLE(value);
    return Buffer.concat([wire.varint((field << 3) | 5), payload]);
  },
};

function initializer(name: string, dims: readonly number[], data: Float32Array): Buffer {
  const raw = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
  return Buffer.concat([
    ...dims.map((d) => wire.int(1, d)),
    wire.int(2, 1),
    wire.bytes(8, name),
    wire.bytes(9, raw),
  ]);
}

function valueInfo(name: string, dims: readonly (number | string)[]): Buffer {
  const shape = dims.map((d) => wire.bytes(1, typeof d === 'number' ? wire.int(1, d) : wire.bytes(2, d)));
  const type = wire.bytes(1, Buffer.concat([wire.int(1, 1), wire.bytes(2, Buffer.concat(shape))]));
  return Buffer.concat([wire.bytes(1, name), wire.bytes(2, type)]);
}

const attribute = {
  int: (name: string, value: number) =>
    Buffer.concat([wire.bytes(1, name), wire.int(3, value), wire.int(20, 2)]),
  string: (name: string, value: string) =>
    Buffer.concat([wire.bytes(1, name), wire.bytes(4, value), wire.int(20, 3)]),
  float: (name: string, value: number) =>
    Buffer.concat([wire.bytes(1, name), wire.float(2, value), wire.int(20, 1)]),
};

/** Gate and up rows interleaved, as the fused SwiGLU wants them: [N, 2m, n]. */
function fusedWeights({ n, m, N }: LayerTask['cell']): Float32Array {
  const fused = new Float32Array(N * 2 * m * n);
  const scale = 1 / Math.sqrt(n);
  for (let expert = 0; expert < N; expert++) {
    const gate = values('f32', seeds.gate(0, expert), m * n, scale);
    const up = values('f32', seeds.up(0, expert), m * n, scale);
    for (let row = 0; row < m; row++) {
      const at = (expert * m + row) * 2 * n;
      fused.set(gate.subarray(row * n, (row + 1) * n), at);
      fused.set(up.subarray(row * n, (row + 1) * n), at + n);
    }
  }
  return fused;
}

function downWeights({ n, m, N }: LayerTask['cell']): Float32Array {
  const down = new Float32Array(N * n * m);
  for (let expert = 0; expert < N; expert++) {
    down.set(values('f32', seeds.down(0, expert), n * m, 1 / Math.sqrt(m)), expert * n * m);
  }
  return down;
}

function makeModel({ cell }: LayerTask): Buffer {
  const { n, m, N, K } = cell;
  const attributes = [
    attribute.string('activation_type', 'swiglu'),
    attribute.int('k', K),
    attribute.int('normalize_routing_weights', 1),
    attribute.int('swiglu_fusion', 1),
    attribute.float('activation_alpha', 1),
    attribute.float('activation_beta', 0),
  ];
  const node = Buffer.concat([
    ...['x', 'router', 'w1', '', 'w2'].map((name) => wire.bytes(1, name)),
    wire.bytes(2, 'y'),
    wire.bytes(4, 'MoE'),
    ...attributes.map((a) => wire.bytes(5, a)),
    wire.bytes(7, 'com.microsoft'),
  ]);
  const graph = Buffer.concat([
    wire.bytes(1, node),
    wire.bytes(2, 'layer'),
    wire.bytes(5, initializer('w1', [N, 2 * m, n], fusedWeights(cell))),
    wire.bytes(5, initializer('w2', [N, n, m], downWeights(cell))),
    wire.bytes(11, valueInfo('x', ['T', n])),
    wire.bytes(11, valueInfo('router', ['T', N])),
    wire.bytes(12, valueInfo('y', ['T', n])),
  ]);
  const opset = (domain: string, version: number) =>
    wire.bytes(8, Buffer.concat([wire.bytes(1, domain), wire.int(2, version)]));
  return Buffer.concat([wire.int(1, 9), opset('', 17), opset('com.microsoft', 1), wire.bytes(7, graph)]);
}

const task = JSON.parse(process.argv[2] as string) as LayerTask;
const { cell, tokens } = task;
const ort = createRequire(join(PEERS, 'package.json'))('onnxruntime-node') as OnnxRuntime;
const model = makeModel(task);
const options = { executionProviders: ['cpu'], intraOpNumThreads: task.threads, logSeverityLevel: 3 };
const sessions: Session[] = [];
while (sessions.length < task.layers) sessions.push(await ort.InferenceSession.create(model, options));
const route = makeRoute(tokens, cell, task.routeSeed, task.distribution);
const x = values('f32', seeds.input, tokens * cell.n);
const feeds = {
  x: new ort.Tensor('float32', x, [tokens, cell.n]),
  router: new ort.Tensor('float32', routerLogits(route, cell.N, cell.K), [tokens, cell.N]),
};
for (const session of sessions) {
  const y = (await session.run(feeds)).y?.data as Float32Array;
  checkFinite('onnxruntime', y);
  for (const token of new Set([0, tokens - 1])) {
    const row = x.subarray(token * cell.n, (token + 1) * cell.n);
    const wanted = denseReference(cell, 'f32', row, route, token);
    checkClose('onnxruntime', y.subarray(token * cell.n, (token + 1) * cell.n), wanted, 1e-4);
  }
}

async function pass(): Promise<void> {
  for (const session of sessions) await session.run(feeds);
}

function answer(line: object): void {
  process.stdout.write(`${JSON.stringify(line)}\n`);
}

answer({ version: `onnxruntime-node ${ort.env.versions.node ?? ''}` });
for await (const _ of createInterface({ input: process.stdin })) answer({ ms: await once(pass) });
