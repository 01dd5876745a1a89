import { execFile, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import type { Distribution } from '../../lib/bench/batches.ts';
import type { LayerCell } from '../../lib/bench/cells.ts';
import type { LayerDType } from '../../lib/bench/layers.ts';
import type { Effort, Stats } from '../../lib/bench/timing.ts';
import { PACKAGE_ROOT } from '../../lib/package.ts';
import { Failure } from './failure.ts';

export type PeerResult = (Stats & { readonly version?: string }) | { readonly absent: string };

/** What a peer is asked for on one MoE layer: our data, our routing, our threads. */
export interface LayerTask {
  readonly cell: LayerCell;
  readonly dtype: LayerDType;
  readonly tokens: number;
  readonly routeSeed: number;
  readonly distribution: Distribution;
  readonly threads: number;
  readonly effort: Effort;
  /** How many layers with these weights to hold: each call goes to the next, so that several find caches cold. */
  readonly layers: number;
}

/** Sources of peers, and their packages, stay here. */
export const PEERS = join(PACKAGE_ROOT, 'bench', 'peers');
const COMPILED_PEERS = join(dirname(dirname(fileURLToPath(import.meta.url))), 'peers');

const TIMEOUT_MS = 10 * 60_000;

/**
 * Runs a peer in a process of its own, one at a time: its threads, which often spin while they wait, and its memory are
 * gone when it is our turn. It prints its Stats, or what else
 * it has to say, as JSON on the last line.
 */
function runPeer<Result = PeerResult>(
  command: string,
  args: readonly string[],
  env: NodeJS.ProcessEnv = {},
): Promise<Result | { readonly absent: string }> {
  return new Promise((resolve) => {
    const options = { timeout: TIMEOUT_MS, maxBuffer: 1 << 26, env: { ...process.env, ...env } };
    execFile(command, [...args], options, (error, stdout, stderr) => {
      const line = stdout.trim().split('\n').at(-1) ?? '';
      try {
        resolve(JSON.parse(line) as Result);
      } catch {
        const reason = complaint(stderr) || error?.message.split('\n')[0] || 'no result';
        resolve({ absent: reason.slice(0, 200) });
      }
    });
  });
}

/** com.microsoft.MoE of onnxruntime-node: dense experts in f32. */
async function onnxruntimeLayer(task: LayerTask): Promise<PeerResult> {
  if (!existsSync(join(PEERS, 'node_modules', 'onnxruntime-node'))) return notInstalled('onnxruntime-node');
  if (task.dtype !== 'f32') return { absent: 'its MoE operator takes f32 only on the CPU' };
  return runPeer(process.execPath, [join(COMPILED_PEERS, 'onnxruntime.js'), JSON.stringify(task)]);
}

/** ggml_mul_mat_id of llama.cpp: dense experts in f32 and bf16. */
async function ggmlLayer(task: LayerTask): Promise<PeerResult> {
  if (!existsSync(join(PEERS, 'node_modules', '@node-llama-cpp', 'linux-x64'))) {
    return notInstalled('@node-llama-cpp/linux-x64');
  }
  return runPeer(process.execPath, [join(COMPILED_PEERS, 'ggml.js'), JSON.stringify(task)]);
}

/** PyTorch on the CPU, by the python that PYTHON names: a loop over experts, and `torch._grouped_mm`. */
async function torchLayer(task: LayerTask): Promise<Record<'loop' | 'grouped_mm', PeerResult>> {
  const script = join(COMPILED_PEERS, 'torch.js');
  type Ways = Record<'loop' | 'grouped_mm', PeerResult>;
  const result = await runPeer<Ways>(process.execPath, [script, JSON.stringify(task)]);
  return 'absent' in result ? { loop: result, grouped_mm: result } : result;
}

/** Every peer that runs whole layers, one after the other. */
export async function layerPeers(task: LayerTask): Promise<Record<LayerPeer, PeerResult>> {
  const onnxruntime = await onnxruntimeLayer(task);
  const ggml = await ggmlLayer(task);
  const torch = await torchLayer(task);
  return {
    onnxruntime,
    'llama.cpp': ggml,
    'PyTorch loop': torch.loop,
    'PyTorch grouped_mm': torch.grouped_mm,
  };
}

export type LayerPeer = 'onnxruntime' | 'llama.cpp' | 'PyTorch loop' | 'PyTorch grouped_mm';

/** How many times as fast as each our dense layer must be, and is aimed to be. */
export const LAYER_PEER_GOALS: Readonly<Record<LayerPeer, readonly [must: number, aim: number]>> = {
  onnxruntime: [1.3, 1.5],
  'llama.cpp': [1.2, 1.5],
  'PyTorch loop': [2, 3],
  'PyTorch grouped_mm': [2, 3],
};

/** LAPACK by way of numpy: 'gesdd' of a random [rows, cols] matrix, or 'eigh' of its Gram matrix. */
export async function numpyLinalg(
  what: 'gesdd' | 'eigh',
  rows: number,
  cols: number,
  dtype: 'f32' | 'f64',
  threads: number,
  { seconds, minSamples }: Effort,
): Promise<PeerResult> {
  const script = join(PEERS, 'numpy_linalg.py');
  const args = [script, what, String(rows), String(cols), dtype, String(seconds), String(minSamples)];
  const env = {
    OPENBLAS_NUM_THREADS: String(threads),
    OMP_NUM_THREADS: String(threads),
    MKL_NUM_THREADS: String(threads),
  };
  let result: PeerResult = { absent: 'no python' };
  for (const python of process.env.PYTHON ? [process.env.PYTHON] : ['python3', '/usr/bin/python3']) {
    result = await runPeer(python, args, env);
    if (!('absent' in result)) break;
  }
  return result;
}

/** An evaluation of a model in a process of its own, which makes a pass when it is asked to. */
interface EvaluationPeer {
  readonly version: string;
  /** What its first pass found. */
  readonly first: { readonly perplexity: number; readonly tokens: number };
  pass(): Promise<{ readonly seconds: number }>;
  stop(): void;
}

/** PyTorch and transformers on the CPU, by the python that PYTHON names. */
export async function startTransformersEval(
  checkpoint: string,
  tokenFile: string,
  name: string,
  windows: number,
  threads: number,
): Promise<EvaluationPeer | { readonly absent: string }> {
  const args = [
    join(PEERS, 'transformers_eval.py'),
    checkpoint,
    tokenFile,
    name,
    String(windows),
    String(threads),
  ];
  const child = spawn(process.env.PYTHON ?? 'python3', args, {
    env: { ...process.env, OMP_NUM_THREADS: String(threads) },
  });
  let complaints = '';
  child.stderr.on('data', (text) => {
    complaints = `${complaints}${text}`.slice(-4096);
  });
  const ended = new Promise<void>((resolve) => {
    child.once('close', () => resolve());
    child.once('error', (error) => {
      complaints = error.message;
      resolve();
    });
  });
  child.stdin.on('error', () => {}); // it ended: the next answer says so
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const answer = async <Answer>(): Promise<Answer> => {
    const { value, done } = await lines.next();
    if (done) await ended;
    if (done) throw new Failure(complaint(complaints) || 'no result');
    return JSON.parse(value) as Answer;
  };
  try {
    const { version, ...first } = await answer<{ version: string; perplexity: number; tokens: number }>();
    const pass = () => {
      child.stdin.write('\n');
      return answer<{ seconds: number }>();
    };
    return { version, first, pass, stop: () => child.stdin.end() };
  } catch (error) {
    child.kill();
    return { absent: `${(error as Error).message.slice(0, 200)}: see bench/peers/README.md` };
  }
}

/** What a process that failed died of: the last error that it tells, or what it said last. */
function complaint(stderr: string): string | undefined {
  const lines = stderr.trim().split('\n');
  return lines.findLast((line) => /^[A-Z]\w+( \[\w+\])?: /.test(line)) ?? lines.at(-1);
}

function notInstalled(name: string): PeerResult {
  return { absent: `${name} is not installed: see bench/peers/README.md` };
}
