import { describe, expect, it } from 'vitest';
import { aimsTable } from '../../bench/support/aims.ts';
import { goal, type Row } from '../../bench/support/context.ts';

const stats = { medianMs: 1, p10Ms: 1, p90Ms: 1, p99Ms: 1, samples: 1 };
const nothing = { flops: null, bytes: null, gflops: null, gbps: null, relativeError: null };
const shares = { ofCeiling: null, ofFma: null, ofSgemm: null, ofRead: null };

function decoded(share: number, speedups: Readonly<Record<string, number>> = {}): Row {
  const peers = Object.entries(speedups).map(([name, speedup]) => [name, { ...stats, speedup }]);
  return {
    ...stats,
    ...nothing,
    ...shares,
    question: 'layer-decode',
    name: 'decode dense',
    shape: '',
    tokens: 1,
    dtype: 'f32',
    threads: 2,
    peers: Object.fromEntries(peers),
    goals: [goal('of read bandwidth', share, 0.85, 0.92)],
    data: { kind: 'dense' },
  };
}

describe('the table of aims', () => {
  it('counts the rows that meet an aim, and says what all have', () => {
    const rows = [decoded(0.9), decoded(0.84), decoded(1.012)];
    expect(aimsTable([{ machine: 'A', rows }])).toBe(
      [
        '|  | aim | A |',
        '| --- | --- | --- |',
        '| 1 and 4 tokens, f32 dense | 85% of reading | 2 of 3: 84 to 101%, median 90 |',
      ].join('\n'),
    );
  });

  it('holds a row against the faster of two ways of a peer, and leaves out machines without it', () => {
    const rows = [decoded(0.9, { 'PyTorch loop': 2.5, 'PyTorch grouped_mm': 1.9 })];
    const table = aimsTable([
      { machine: 'A', rows },
      { machine: 'B', rows: [decoded(0.9)] },
    ]);
    expect(table).toContain('| PyTorch, 1 token, f32 | 2 times as fast | 0 of 1: 1.90× |  |');
  });
});
