import { expect, test } from 'vitest';
import { mulberry32 } from '../lib/random.ts';

test('mulberry32 gives its known numbers, the same of the same seed', () => {
  const of = (seed: number) => {
    const random = mulberry32(seed);
    return [random(), random(), random()];
  };
  expect(of(0)).toEqual([0.26642920868471265, 0.0003297457005828619, 0.2232720274478197]);
  expect(of(12345)).toEqual([0.9797282677609473, 0.3067522644996643, 0.484205421525985]);
  expect(of(2 ** 32 + 12345)).toEqual(of(12345));
});
