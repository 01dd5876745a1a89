import { expect, it } from 'vitest';
import { layerWork } from '../../lib/bench/batches.ts';

/** Two groups of two experts; the first token falls into one of them, the second into both. */
const cell = { model: 'small', n: 10, m: 7, N: 4, K: 2, k: 2, r: 3, fullN: 4 };
const batch = {
  tokens: 2,
  route: { ids: Int32Array.of(0, 1, 0, 2), weights: new Float32Array(4).fill(0.5) },
};
/** x and y are f32: 10 numbers each for two tokens. */
const activations = 2 * 4 * 10 * 2;

it('a dense layer works on 3 matrices of 7 x 10: of 4 choices, and of 3 experts in memory', () => {
  const flops = 3 * 2 * 70 * 4;
  expect(layerWork('dense', cell, 'f32', batch)).toEqual({ flops, bytes: 3 * 70 * 3 * 4 + activations });
  expect(layerWork('dense', cell, 'bf16', batch)).toEqual({ flops, bytes: 3 * 70 * 3 * 2 + activations });
});

it('a latent layer works on 3 of 3 x 10 for each group of a token, and on 3 of 7 x 3 for each choice', () => {
  const flops = 3 * 2 * 30 * 3 + 3 * 2 * 21 * 4;
  const weights = 3 * 30 * 2 + 3 * 21 * 3;
  expect(layerWork('latent', cell, 'f32', batch)).toEqual({ flops, bytes: weights * 4 + activations });
  expect(layerWork('latent', cell, 'bf16', batch)).toEqual({ flops, bytes: weights * 2 + activations });
});
