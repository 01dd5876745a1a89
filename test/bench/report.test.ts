import { basename } from 'node:path';
import { describe, expect, it, onTestFinished, vi } from 'vitest';
import type { Row } from '../../bench/support/context.ts';
import {
  compareResults,
  makeResults,
  readResults,
  resultsPath,
  writeResults,
} from '../../bench/support/report.ts';
import type { DeviceInfo } from '../../lib/device.ts';
import { outputFolder } from '../support/temporary.ts';

const ceilings = { fmaGflops: 180, sgemmGflops: 165, readGBps: 64 };
const info: DeviceInfo = {
  kind: 'cpu',
  index: 0,
  name: 'a CPU',
  library: '',
  features: [],
  threads: 2,
  memoryBytes: 0,
};
const stats = { medianMs: 10, p10Ms: 9, p90Ms: 11, p99Ms: 12, samples: 9 };

function row(name: string, ofCeiling: number | null, speedup: number): Row {
  return {
    ...stats,
    question: 'layer-prefill',
    name,
    shape: 'a shape',
    tokens: 512,
    dtype: 'f32',
    threads: 2,
    flops: null,
    bytes: null,
    gflops: null,
    gbps: null,
    ofCeiling,
    ofFma: null,
    ofSgemm: null,
    ofRead: null,
    peers: { onnxruntime: { ...stats, speedup } },
    goals: [],
    relativeError: null,
    data: {},
  };
}

describe('results against stored ones', () => {
  const stored = makeResults('0', info, false, [ceilings], [row('a', 0.9, 2), row('b', null, 1.5)]);

  it('name each ratio that fell by more than 15%', () => {
    const question = 'layer-prefill';
    expect(compareResults(stored, [row('a', 0.7, 1.6), row('b', null, 1.5)])).toEqual({
      compared: 3,
      fallen: [
        { question, text: 'a a shape T=512 f32: of ceiling fell from 0.900 to 0.700' },
        { question, text: 'a a shape T=512 f32: against onnxruntime fell from 2.000 to 1.600' },
      ],
    });
  });

  it('take the best of what was measured twice', () => {
    const twice = [row('a', 0.7, 1.5), row('b', null, 1.5), row('a', 0.89, 1.6)];
    const { compared, fallen } = compareResults(stored, twice);
    expect(compared).toBe(3);
    expect(fallen.map(({ text }) => text)).toEqual([
      'a a shape T=512 f32: against onnxruntime fell from 2.000 to 1.600',
    ]);
  });

  it('let 14% pass', () => {
    expect(compareResults(stored, [row('a', 0.78, 1.72)])).toEqual({ compared: 2, fallen: [] });
  });

  it('do not count what is new or not measured', () => {
    const absent: Row = { ...row('b', null, 0), peers: { onnxruntime: { absent: 'not installed' } } };
    expect(compareResults(stored, [absent, row('new', 0.1, 0.1)])).toEqual({ compared: 0, fallen: [] });
  });
});

it('rows of questions that are not asked again keep when they were measured, if they knew it', async () => {
  const folder = await outputFolder('bench-results');
  const of = (question: string, name: string, measured?: string): Row => ({
    ...row(name, 1, 1),
    question,
    ...(measured ? { measured } : {}),
  });
  const write = (...rows: Row[]) => writeResults(folder, makeResults('0', info, false, [ceilings], rows))[0];
  write(
    of('gemm', 'a', '2026-01-01T00:00:00.000Z'),
    of('svd', 'b'),
    of('eigh', 'c', '2026-01-02T00:00:00.000Z'),
  );
  const path = write(of('eigh', 'c', '2026-02-02T00:00:00.000Z')) as string;
  expect(readResults(path)?.results.map(({ name, measured }) => [name, measured])).toEqual([
    ['c', '2026-02-02T00:00:00.000Z'],
    ['a', '2026-01-01T00:00:00.000Z'],
    ['b', undefined],
  ]);
});

it('results with narrower vectors than the processor has are a file of their own', () => {
  onTestFinished(() => void vi.unstubAllEnvs());
  vi.stubEnv('MOLAE_INSTRUCTIONS', undefined);
  expect(basename(resultsPath('', { name: 'AMD EPYC(TM) 7-Core Processor', threads: 2 }))).toBe(
    'amd-epyc-2t.json',
  );
  vi.stubEnv('MOLAE_INSTRUCTIONS', 'avx2');
  expect(basename(resultsPath('', { name: 'AMD EPYC', threads: 2 }))).toBe('amd-epyc-avx2-2t.json');
});
