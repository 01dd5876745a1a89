import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import {
  benchMachine,
  type MachineBench,
  type MachineBenchPlan,
  SHORT_PLAN,
} from '../../lib/bench/machine-bench.ts';
import { makeRow } from '../../lib/bench/row.ts';
import { describeBench } from '../../lib/cli/bench.ts';
import { openDevice } from '../../lib/device.ts';
import { deadline } from '../support/deadline.ts';
import { builtCli, ROOT } from './support.ts';

const cli = builtCli();

/** The same questions on layers of nothing: what is under test is not how fast they are. */
const TINY_PLAN: MachineBenchPlan = {
  cell: { model: 'tiny', n: 64, m: 32, N: 8, K: 2, k: 4, r: 16, fullN: 16 },
  dtypes: ['f32', 'bf16'],
  tokens: [1, 5],
  factorization: { n: 32, m: 16, k: 2, r: 8 },
  calls: 20,
  seconds: 0,
  minSamples: 3,
  coldBytes: 1,
};

describe('what is measured', () => {
  let bench: MachineBench;
  const notes: string[] = [];
  beforeAll(async () => {
    using device = await openDevice('cpu', { threads: 1 });
    bench = await benchMachine(device, {
      plan: TINY_PLAN,
      onProgress: (done, total, note) => {
        expect(done).toBeLessThan(total);
        notes.push(note);
      },
    });
  }, deadline(120));

  it('has the fields of the contract, in JSON', async () => {
    const { version } = JSON.parse(await readFile(join(ROOT, 'package.json'), 'utf8'));
    const json = JSON.parse(JSON.stringify(bench));
    expect(json).toMatchObject({ version, threads: 1 });
    for (const name of ['fmaGflops', 'sgemmGflops', 'readGBps'])
      expect(json.ceilings[name]).toBeGreaterThan(0);
    for (const row of json.results) {
      expect(row).toMatchObject({
        name: expect.any(String),
        shape: expect.any(String),
        dtype: expect.stringMatching(/^(f32|bf16)$/),
        threads: 1,
        peers: {},
      });
      for (const name of ['tokens', 'gflops', 'gbps', 'ofCeiling']) {
        expect(row[name] === null || Number.isFinite(row[name]), name).toBe(true);
      }
      expect(row.medianMs).toBeGreaterThan(0);
      expect(row.p10Ms).toBeLessThanOrEqual(row.medianMs);
      expect(row.p90Ms).toBeGreaterThanOrEqual(row.medianMs);
    }
  });

  it('is every kind of layer, dtype and batch, a factorization and both ways to call', () => {
    const rows = bench.results.map(({ name, dtype, tokens }) => `${name} ${dtype} ${tokens}`);
    const layers = ['f32', 'bf16'].flatMap((dtype) =>
      [1, 5].flatMap((tokens) => ['dense', 'latent'].map((kind) => `layer ${kind} ${dtype} ${tokens}`)),
    );
    expect(rows).toEqual([...layers, 'factorize f32 null', 'forwardSync f32 0', 'forward f32 0']);
    expect(
      notes.every((note) => note.length <= 24),
      notes.join('; '),
    ).toBe(true);
    expect(bench.results[0]?.shape).toContain('N8 of 16');
  });

  it('counts useful work only: gate, up and down once for each routed token', () => {
    const dense = bench.results.find(({ name, tokens }) => name === 'layer dense' && tokens === 5);
    expect(dense?.flops).toBe(6 * 64 * 32 * 2 * 5);
    expect(bench.results.find(({ name }) => name === 'factorize')?.flops).toBe(2 * 32 * 32 * 16);
  });

  it('fits 80 columns for people, with every row', () => {
    // The widest figures that a machine may have, too.
    const results = bench.results.map((row) => ({
      ...row,
      p10Ms: 1234,
      medianMs: 2345,
      p90Ms: 3456,
      gflops: 9876.5,
    }));
    for (const shown of [bench, { ...bench, results }]) {
      const lines = describeBench(shown, 80);
      expect(Math.max(...lines.map((line) => [...line].length)), lines.join('\n')).toBeLessThanOrEqual(80);
      expect(lines.filter((line) => / (f32|bf16) /.test(line))).toHaveLength(bench.results.length);
    }
  });

  it('says so when the limits themselves moved', () => {
    const steady = { fmaGflops: [100, 110], sgemmGflops: [80, 88], readGBps: [20, 21] } as const;
    const text = (ceilingsSpread: MachineBench['ceilingsSpread']) =>
      describeBench({ ...bench, ceilingsSpread }, 80).join(' ');
    expect(text(steady)).not.toContain('something else is at work');
    expect(text({ ...steady, readGBps: [10, 20] })).toContain('moved by 2.00×');
  });

  it('stops at the signal', async () => {
    using device = await openDevice('cpu', { threads: 1 });
    const signal = AbortSignal.abort();
    await expect(benchMachine(device, { plan: TINY_PLAN, signal })).rejects.toMatchObject({
      code: 'ABORTED',
    });
  });
});

it('the share of the ceiling is the least possible time over the median', () => {
  const stats = { medianMs: 10, p10Ms: 9, p90Ms: 11, p99Ms: 12, samples: 5 };
  const ceilings = { fmaGflops: 100, sgemmGflops: 80, readGBps: 20 };
  const measured = { name: 'x', shape: 'y', dtype: 'f32', timing: { stats, ceilings } };
  // 0.4e9 FLOPs need 4 ms, 0.1e9 bytes 5 ms.
  expect(makeRow({ ...measured, flops: 0.4e9, bytes: 0.1e9 }, 2)).toMatchObject({
    gflops: 40,
    gbps: 10,
    ofCeiling: 0.5,
    ofSgemm: 0.5,
  });
  expect(makeRow(measured, 2)).toMatchObject({ gflops: null, gbps: null, ofCeiling: null });
});

it('the plan of the command fits a small machine and names what was scaled down', () => {
  const { N, n, m, fullN } = SHORT_PLAN.cell;
  expect(N).toBeLessThan(fullN);
  expect(3 * N * n * m * 4).toBeLessThan(0.5e9);
});

describe('molae bench', () => {
  it.each<[problem: string, args: string[], words: string]>([
    ['a GPU', ['bench', '--device', 'cuda'], 'auto or cpu for --device'],
    ['no threads', ['bench', '--threads', '0'], 'a positive integer for --threads'],
    ['an argument', ['bench', 'x'], 'bench takes no arguments'],
  ])('%s: exit 2, one line and a pointer to the help', async (_, args, words) => {
    const { status, stdout, stderr } = await cli.run(...args);
    expect({ status, stdout }).toEqual({ status: 2, stdout: '' });
    expect(stderr).toMatch(/^molae: [^\n]+\nSee: molae bench --help\n$/);
    expect(stderr).toContain(words);
  });

  it(
    'stops on Ctrl-C: exit 130, no result',
    async () => {
      const child = cli.start('bench', '--threads', '1', '--json');
      let stdout = '';
      let stderr = '';
      child.stdout?.on('data', (data) => {
        stdout += data;
      });
      const measuring = new Promise<void>((resolve) => {
        child.stderr?.on('data', (data) => {
          stderr += data;
          if (stderr.includes('measuring')) resolve();
        });
      });
      await measuring;
      child.kill('SIGINT');
      const [status] = await once(child, 'close');
      expect(status, stderr).toBe(130);
      expect(JSON.parse(stdout)).toEqual({ error: { code: 'ABORTED', message: 'stopped by SIGINT' } });
      expect(stderr).toContain('stopped by SIGINT');
    },
    deadline(60),
  );
});
