import { expect, it } from 'vitest';
import { checkClose, WrongResult } from '../../lib/bench/check.ts';

it('a result is close up to the bound, and NaN never is', () => {
  expect(checkClose('x', [3, 4.25], [3, 4], 0.05)).toBe(0.05);
  expect(() => checkClose('x', [3, 4.5], [3, 4], 0.05)).toThrow(WrongResult);
  expect(() => checkClose('x', [Number.NaN], [1], 1e-5)).toThrow(WrongResult);
});
