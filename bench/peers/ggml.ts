// ggml_mul_mat_id of llama.cpp on one layer. Argument: a LayerTask as JSON. Compiles ggml-moe.cc on first use.
import { execFileSync } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { makeRoute } from '../../lib/bench/batches.ts';
import { POOL_LENGTH, POOL_STRIDE, pool, values } from '../../lib/bench/data.ts';
import { seeds } from '../../lib/bench/layers.ts';
import { denseReference } from '../../lib/bench/reference.ts';
import { statistics } from '../../lib/bench/timing.ts';
import { type LayerTask, PEERS, ROOT } from '../support/peers.ts';

const packageFolder = join(PEERS, 'node_modules', '@node-llama-cpp', 'linux-x64');
const libraries = join(packageFolder, 'bins', 'linux-x64');

function compile(): string {
  const source = join(PEERS, 'ggml-moe.cc');
  const program = join(ROOT, 'build', 'bench', 'ggml-moe');
  if (existsSync(program) && statSync(program).mtimeMs > statSync(source).mtimeMs) return program;
  mkdirSync(join(ROOT, 'build', 'bench'), { recursive: true });
  const wanted = readdirSync(libraries).filter((name) => /^libggml(-base)?(\.v[\d.]+)?\.so$/.test(name));
  const links = wanted.map((name) => `-l:${name}`);
  execFileSync(
    'g++',
    ['-std=c++20', '-O2', source, '-o', program, `-L${libraries}`, ...links, `-Wl,-rpath,${libraries}`],
    {
      stdio: ['ignore', 'ignore', 'inherit'],
    },
  );
  return program;
}

const task = JSON.parse(process.argv[2] as string) as LayerTask;
const { cell, tokens } = task;
const { n, m, N, K } = cell;
const route = makeRoute(tokens, cell, task.routeSeed);
const x = values('f32', seeds.input, tokens * n);
const folder = mkdtempSync(join(tmpdir(), 'molae-bench-'));
try {
  const program = compile();
  const bytes = (array: Float32Array | Int32Array) =>
    Buffer.from(array.buffer, array.byteOffset, array.byteLength);
  writeFileSync(join(folder, 'pool-n'), bytes(pool('f32', 1 / Math.sqrt(n))));
  writeFileSync(join(folder, 'pool-m'), bytes(pool('f32', 1 / Math.sqrt(m))));
  writeFileSync(join(folder, 'x'), bytes(x));
  writeFileSync(join(folder, 'ids'), bytes(route.ids));
  writeFileSync(join(folder, 'weights'), bytes(route.weights));
  const checked = [...new Set([0, tokens - 1])];
  const wanted = checked.map((token) => {
    // ggml rounds x to bf16 as well where the weights are bf16; its bound is wider for that.
    return Float32Array.from(
      denseReference(cell, task.dtype, x.subarray(token * n, (token + 1) * n), route, token),
    );
  });
  writeFileSync(join(folder, 'wanted'), Buffer.concat(wanted.map(bytes)));
  const { seconds, minSamples } = task.effort;
  const args = [
    folder,
    libraries,
    task.dtype,
    n,
    m,
    N,
    K,
    tokens,
    task.threads,
    seconds,
    minSamples,
    POOL_LENGTH,
    POOL_STRIDE,
  ];
  const printed = execFileSync(program, args.map(String), {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const times = (JSON.parse(printed.trim().split('\n').at(-1) ?? '') as { times: number[] }).times;
  const { version } = JSON.parse(readFileSync(join(packageFolder, 'package.json'), 'utf8')) as {
    version: string;
  };
  process.stdout.write(
    `${JSON.stringify({ ...statistics(times), version: `@node-llama-cpp/linux-x64 ${version}` })}\n`,
  );
} finally {
  rmSync(folder, { recursive: true });
}
