// ggml_mul_mat_id of llama.cpp on one layer. Argument: a LayerTask as JSON. Compiles ggml-moe.cc on first use.
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { POOL_LENGTH, POOL_STRIDE } from '../../lib/bench/data.ts';
import { statistics } from '../../lib/bench/timing.ts';
import { PACKAGE_ROOT } from '../../lib/package.ts';
import { type LayerTask, PEERS } from '../support/peers.ts';
import { withLayerFiles } from './layer-files.ts';

const packageFolder = join(PEERS, 'node_modules', '@node-llama-cpp', 'linux-x64');
const libraries = join(packageFolder, 'bins', 'linux-x64');

function compile(): string {
  const source = join(PEERS, 'ggml-moe.cc');
  const program = join(PACKAGE_ROOT, 'build', 'bench', 'ggml-moe');
  if (existsSync(program) && statSync(program).mtimeMs > statSync(source).mtimeMs) return program;
  mkdirSync(join(PACKAGE_ROOT, 'build', 'bench'), { recursive: true });
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
const { n, m, N, K } = task.cell;
const { seconds, minSamples } = task.effort;
const program = compile();
const printed = withLayerFiles(task, (folder) => {
  // ggml rounds x to bf16 as well where the weights are bf16; its bound is wider for that.
  const sizes = [task.dtype, n, m, N, K, task.tokens, task.threads, task.layers];
  const args = [folder, libraries, ...sizes, seconds, minSamples, POOL_LENGTH, POOL_STRIDE];
  return execFileSync(program, args.map(String), { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });
});
const times = (JSON.parse(printed.trim().split('\n').at(-1) ?? '') as { times: number[] }).times;
const { version } = JSON.parse(readFileSync(join(packageFolder, 'package.json'), 'utf8')) as {
  version: string;
};
process.stdout.write(
  `${JSON.stringify({ ...statistics(times), version: `@node-llama-cpp/linux-x64 ${version}` })}\n`,
);
