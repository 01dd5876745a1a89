import { type ExecFileException, execFile, spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterAll, beforeAll } from 'vitest';
import { deadline } from '../support/deadline.ts';

export const ROOT = dirname(dirname(dirname(fileURLToPath(import.meta.url))));

export interface Finished {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface BuiltCli {
  /** The folder that lib/ was compiled to; beside build/, so that the addon is found. */
  readonly folder: string;
  /** A fresh folder for outputs. */
  readonly scratch: string;
  /** Runs `molae` in a process of its own. */
  run(...args: string[]): Promise<Finished>;
  /** The same with other environment variables. */
  runWith(env: Readonly<Record<string, string>>, ...args: string[]): Promise<Finished>;
  /** Starts it, for signals. */
  start(...args: string[]): ReturnType<typeof spawn>;
}

/** Compiles lib/ for the tests of this file, which thus run what is there and not an old dist/. */
export function builtCli(): BuiltCli {
  const folder = mkdtempSync(join(ROOT, 'build-cli-'));
  const main = join(folder, 'cli/main.js');
  const scratch = mkdtempSync(join(tmpdir(), 'molae-cli-'));
  beforeAll(() => compile(['-p', join(ROOT, 'tsconfig.build.json'), '--outDir', folder]), deadline(60));
  afterAll(() => {
    rmSync(folder, { recursive: true, force: true });
    rmSync(scratch, { recursive: true, force: true });
  });
  return {
    folder,
    scratch,
    run: (...args) => runNode([main, ...args], scratch),
    runWith: (env, ...args) => runNode([main, ...args], scratch, env),
    start: (...args) => spawn(process.execPath, [main, ...args], { cwd: scratch }),
  };
}

/** Runs the TypeScript compiler; throws with what it says. */
export async function compile(args: readonly string[]): Promise<void> {
  const { status, stdout } = await runNode([join(ROOT, 'node_modules/typescript/bin/tsc'), ...args], ROOT);
  if (status !== 0) throw new Error(stdout);
}

export async function runNode(
  args: readonly string[],
  cwd: string,
  env: Readonly<Record<string, string>> = {},
): Promise<Finished> {
  try {
    const { stdout, stderr } = await promisify(execFile)(process.execPath, args, {
      cwd,
      env: { ...process.env, ...env },
    });
    return { status: 0, stdout, stderr };
  } catch (error) {
    const { code, stdout = '', stderr = '' } = error as ExecFileException;
    return { status: typeof code === 'number' ? code : null, stdout, stderr };
  }
}
