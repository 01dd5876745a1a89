import { expect, it } from 'vitest';
import { scaleDown } from '../../lib/bench/cells.ts';

it.each([16, 128])('a layer in groups of %i, scaled down, has as many experts as a token goes to', (k) => {
  const cell = { model: 'Qwen3-30B-A3B', n: 2048, m: 768, N: 128, K: 8, k, r: 384, fullN: 128 };
  const scaled = scaleDown(cell, 4);
  expect(scaled.N).toBeGreaterThanOrEqual(scaled.K);
  expect(scaled.N / scaled.k).toBe(128 / k);
});
