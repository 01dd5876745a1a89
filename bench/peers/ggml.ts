import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { POOL_LENGTH, POOL_STRIDE } from '../../lib/bench/data.ts';
import { PACKAGE_ROOT } from '../../lib/package.ts';
import { Failure } from '../support/failure.ts';
import { TurnProcess } from '../support/turn-process.ts';
import { PEERS, peerPackage } from './folders.ts';
import { withLayerFiles } from './layer-files.ts';
import type { LayerTask } from './layer-task.ts';

const PACKAGE = '@node-llama-cpp/linux-x64';

/** ggml_mul_mat_id of llama.cpp: dense experts. Compiles ggml-moe.cc on first use. */
export async function startGgml(task: LayerTask): Promise<TurnProcess<{ readonly version: string }>> {
  const folder = peerPackage(PACKAGE);
  const libraries = join(folder, 'bins', 'linux-x64');
  const program = compile(libraries);
  const { version } = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8')) as { version: string };
  const { n, m, N, K } = task.cell;
  const sizes = [n, m, N, K, task.tokens, task.threads, task.layers, POOL_LENGTH, POOL_STRIDE];
  return withLayerFiles(task, (files) =>
    TurnProcess.start(program, [`${PACKAGE} ${version}`, files, libraries, task.dtype, ...sizes.map(String)]),
  );
}

function compile(libraries: string): string {
  const source = join(PEERS, 'ggml-moe.cc');
  const program = join(PACKAGE_ROOT, 'build', 'bench', 'ggml-moe');
  if (existsSync(program) && statSync(program).mtimeMs > statSync(source).mtimeMs) return program;
  mkdirSync(join(PACKAGE_ROOT, 'build', 'bench'), { recursive: true });
  const wanted = readdirSync(libraries).filter((name) => /^libggml(-base)?(\.v[\d.]+)?\.so$/.test(name));
  const links = wanted.map((name) => `-l:${name}`);
  const args = ['-std=c++20', '-O2', source, '-o', program];
  const { error, status } = spawnSync(
    'g++',
    [...args, `-L${libraries}`, ...links, `-Wl,-rpath,${libraries}`],
    { stdio: ['ignore', 'ignore', 'inherit'] },
  );
  if (status !== 0)
    throw new Failure(`g++ could not compile ggml-moe.cc${error ? `: ${error.message}` : ''}`);
  return program;
}
