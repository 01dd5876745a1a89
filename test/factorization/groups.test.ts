import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  checkGroupSize,
  consecutiveGroups,
  divisors,
  resolveGroups,
} from '../../lib/factorization/groups.ts';
import { invalid } from '../support/errors.ts';

const count = fc.integer({ min: 1, max: 600 });

describe('groups', () => {
  test('divisors are all numbers that divide, ascending', () => {
    fc.assert(
      fc.property(count, (N) => {
        const tried = Array.from({ length: N }, (_, i) => i + 1).filter((k) => N % k === 0);
        expect(divisors(N)).toEqual(tried);
      }),
    );
  });

  test('consecutive groups have every expert once, in order', () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 20 }), fc.integer({ min: 1, max: 20 }), (k, G) => {
        const groups = consecutiveGroups(k * G, k);
        expect(groups.map(({ length }) => length)).toEqual(new Array(G).fill(k));
        expect(groups.flat()).toEqual(Array.from({ length: k * G }, (_, i) => i));
        expect(resolveGroups({ groupSize: k }, k * G)).toEqual(groups);
      }),
    );
  });

  test.each([[0], [-2], [4], [12], [1.5], ['3'], [3n], [null], [undefined], [[3]]])(
    'refuse the size %o for 6 experts',
    (groupSize) => {
      const refusal = invalid('a divisor of the 6 experts (1, 2, 3, 6)', 'groupSize');
      expect(() => checkGroupSize(6, groupSize)).toThrow(refusal);
      expect(() => resolveGroups({ groupSize: groupSize as never }, 6)).toThrow(refusal);
    },
  );

  test.each([
    ['an expert twice', [[0, 1], [1]]],
    ['an expert too few', [[0], [2]]],
    [
      'an expert too many',
      [
        [0, 1],
        [2, 3],
      ],
    ],
    ['an empty group', [[0, 1, 2], []]],
    ['what is no array', { length: 1, 0: [0, 1, 2] }],
    ['a group that is no array', ['012']],
    ['billions of groups', new Array(2 ** 32 - 1)],
    ['billions of experts', [new Array(2 ** 32 - 1)]],
  ])('refuse %s', (_, groups) => {
    expect(() => resolveGroups({ groups: groups as never }, 3)).toThrow(invalid('groups'));
  });

  test('refuse a size beside explicit groups', () => {
    expect(() => resolveGroups({ groupSize: 1, groups: [[0]] }, 1)).toThrow(invalid('groupSize', 'groups'));
  });
});
