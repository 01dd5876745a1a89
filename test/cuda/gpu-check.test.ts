import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { beforeEach, describe, expect, it } from 'vitest';
import { temporaryFolder } from '../support/temporary.ts';

// scripts/gpu-check.sh as on a GPU's machine, with stand-ins for everything that it calls there: what becomes of steps that
// fail, are cut off, or cannot be had.

const root = fileURLToPath(new URL('../..', import.meta.url));
const row = (name: string, tokens: number) =>
  `{"name": "${name}", "dtype": "bf16", "tiles": "mma", "launch": "stream", "tokens": ${tokens}, "medianMs": 1, "gflops": 2, "gbps": 3}`;
const bench = `printf '{"device": "a", "library": "b", "memoryBytes": 1, "results": [\\n${row('dense x k1 r2', 16)}'`;

interface Report {
  ok: boolean;
  steps: Record<string, { ok: boolean; status: number | string; output?: string[] }>;
  skipped: string[];
  sanitizer: string;
  parity: { passed: number; failed: number; failures: string[] } | null;
  tiles: { tests: string[] };
  bench: { results: unknown[] } | null;
}

describe.skipIf(!existsSync('/bin/bash'))('scripts/gpu-check.sh', () => {
  let folder: string;
  beforeEach(async () => {
    folder = await temporaryFolder();
    mkdirSync(join(folder, 'bin'));
    for (const file of ['scripts/gpu-check.sh', 'test/cuda/summarize.cjs'])
      cpSync(join(root, file), join(folder, file.split('/').at(-1) as string));
    symlinkSync(process.execPath, join(folder, 'node'));
    writeFileSync(join(folder, 'smoke.cjs'), '');
    standIn('bin/nvidia-smi', "echo 'a card, 580.1, 9.0, 1 MiB'");
    standIn('bin/compute-sanitizer', 'while [[ $1 != ./* ]]; do shift; done; exec "$@"');
    standIn('bin/python3', 'exit 1');
    standIn(
      'molae_native_tests',
      "echo 'ok     tiles: right (0.1 s)'; echo '7 passed, 0 failed on cuda (--seed 3)'",
    );
    standIn('molae_device_bench', `${bench}; echo ']}'`);
  });

  function standIn(name: string, script: string) {
    writeFileSync(join(folder, name), `#!/bin/bash\n${script}\n`);
    chmodSync(join(folder, name), 0o755);
  }

  function check(...args: string[]): { status: number | null; report: Report } {
    const result = join(folder, 'result.json');
    const { status } = spawnSync(join(folder, 'gpu-check.sh'), [...args, result], {
      env: { ...process.env, PATH: `${join(folder, 'bin')}:${process.env.PATH}` },
    });
    return { status, report: JSON.parse(readFileSync(result, 'utf8')) };
  }

  it('passes where every step does', () => {
    const { status, report } = check();
    const paritySteps = Object.keys(report.steps).filter((name) => name.startsWith('parity_'));
    expect(report).toMatchObject({
      ok: true,
      sanitizer: 'ran',
      parity: { passed: 7 * paritySteps.length, failed: 0 },
    });
    expect(Object.keys(report.steps)).toEqual(
      expect.arrayContaining(['parity_hopper', 'bench_hopper_graph', 'racecheck_hopper', 'smoke']),
    );
    expect(report.tiles.tests.length).toBeGreaterThan(0);
    expect(status).toBe(0);
  });

  it('leaves two files, the report and the output of every step', () => {
    const { report } = check('--parts', 'parity');
    const packed = spawnSync('tar', ['-tzf', join(folder, 'result.logs.tgz')], { encoding: 'utf8' });
    for (const step of Object.keys(report.steps)) expect(packed.stdout).toContain(`logs/${step}.log`);
    expect(readdirSync(folder).filter((name) => name.startsWith('result'))).toEqual([
      'result.json',
      'result.logs.tgz',
    ]);
  });

  it('has a step for every device test', () => {
    standIn('molae_native_tests', 'echo "$@" >>asked');
    check('--parts', 'parity');
    const asked = readFileSync(join(folder, 'asked'), 'utf8')
      .trim()
      .split('\n')
      .map((line) => /--filter (.*?)(?: --exclude.*)?$/.exec(line)?.[1] as string);
    const sources = readdirSync(join(root, 'test/native'), { recursive: true, encoding: 'utf8' });
    const tests = sources
      .filter((name) => name.endsWith('.cc'))
      .flatMap((name) => [
        ...readFileSync(join(root, 'test/native', name), 'utf8').matchAll(
          /MOLAE_TEST\(\s*"([^"]*)",\s*Device/g,
        ),
      ])
      .map(([, test]) => test as string);
    expect(tests.length).toBeGreaterThan(50);
    expect(tests.filter((test) => !asked.some((filter) => test.includes(filter)))).toEqual([]);
    // Hopper's and those of graphs, which other steps leave out, have two steps of their own.
    const others = tests.filter((test) => !/every Hopper tile|graphs:/.test(test));
    expect(others.filter((test) => asked.filter((filter) => test.includes(filter)).length > 1)).toEqual([]);
  });

  it('fails with the tests, and with what a sanitizer finds', () => {
    standIn('molae_native_tests', "echo '6 passed, 1 failed on cuda (--seed 3)'; exit 1");
    expect(check('--parts', 'parity')).toMatchObject({
      status: 1,
      report: { ok: false, parity: { failed: 10, failures: [] } },
    });

    standIn('bin/compute-sanitizer', '[[ $* == *racecheck* ]] && exit 9; exit 0');
    const { status, report } = check('--parts', 'sanitizers');
    expect(report.steps.racecheck).toMatchObject({ ok: false, status: 9 });
    expect({ status, ok: report.ok }).toEqual({ status: 1, ok: false });
  });

  it('is not failed by a sanitizer that takes no device, has no time, or is not there', () => {
    standIn('bin/compute-sanitizer', "echo 'Device not supported' >&2; exit 1");
    const refused = check('--parts', 'sanitizers').report;
    expect(refused).toMatchObject({ ok: true, sanitizer: expect.stringContaining('refused the device') });
    expect(Object.keys(refused.steps).filter((name) => /check/.test(name))).toEqual([]);

    const cutOff = (said: string) =>
      standIn(
        'bin/compute-sanitizer',
        `echo '========= ${said}'; [[ $* == *racecheck* ]] && exit 124; exit 0`,
      );
    cutOff('COMPUTE-SANITIZER');
    const cut = check('--parts', 'sanitizers');
    expect(cut).toMatchObject({ status: 0, report: { ok: true } });
    expect(cut.report.skipped).toContain('racecheck_hopper');
    cutOff('Error: Race reported between Write access and Read access');
    expect(check('--parts', 'sanitizers')).toMatchObject({
      status: 1,
      report: { steps: { racecheck: { ok: false, status: 124 } } },
    });
  });

  it('keeps the rows of a bench that was cut off or could not have all, and fails with it', () => {
    standIn('molae_device_bench', `${bench}; printf ',\\n  {"name": "la'; exit 1`);
    const { status, report } = check('--parts', 'benches');
    expect(report.bench?.results).toHaveLength(1);
    expect(report.steps.bench).toMatchObject({ ok: false, status: 1 });
    expect(status).toBe(1);
    standIn('molae_device_bench', 'echo nothing');
    expect(check('--parts', 'benches').report.steps.bench).toMatchObject({
      ok: false,
      output: ['no rows', ''],
    });
  });

  it('is not failed where there is no torch to measure peers with', () => {
    expect(check('--parts', 'peers')).toMatchObject({ status: 0, report: { ok: true, peers: null } });
  });
});

const addon = join(root, 'build/Release/molae.node');
describe.skipIf(!existsSync(addon))('test/cuda/smoke.cjs', () => {
  it('passes on the CPU, whose addon has the same surface', async () => {
    const folder = await temporaryFolder();
    cpSync(join(root, 'test/cuda/smoke.cjs'), join(folder, 'smoke.cjs'));
    symlinkSync(addon, join(folder, 'molae.node'));
    const { stdout, stderr } = spawnSync(process.execPath, ['smoke.cjs', 'cpu'], {
      cwd: folder,
      encoding: 'utf8',
    });
    expect(stderr).toBe('');
    expect(stdout).toContain('smoke test passed');
  });
});
