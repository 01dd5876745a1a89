import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { affinityGroups } from '../../../lib/methods/grouping/partition.ts';

function within(affinity: readonly number[][], groups: readonly (readonly number[])[]): number {
  return groups
    .flatMap((group) => group.flatMap((a) => group.map((b) => (a < b ? (affinity[a] as number[])[b] : 0))))
    .reduce<number>((sum, value) => sum + (value as number), 0);
}

/** All partitions of experts into groups of k. */
function* partitions(experts: readonly number[], k: number): Generator<number[][]> {
  const [first, ...rest] = experts;
  if (first === undefined) return yield [];
  for (const others of subsets(rest, k - 1)) {
    const left = rest.filter((expert) => !others.includes(expert));
    for (const groups of partitions(left, k)) yield [[first, ...others], ...groups];
  }
}

function* subsets(items: readonly number[], size: number): Generator<number[]> {
  if (size === 0) return yield [];
  for (const [i, item] of items.entries()) {
    for (const others of subsets(items.slice(i + 1), size - 1)) yield [item, ...others];
  }
}

const symmetric = (count: number) =>
  fc
    .array(fc.double({ min: 0, max: 1, noNaN: true }), { minLength: count ** 2, maxLength: count ** 2 })
    .map((values) =>
      Array.from({ length: count }, (_, i) =>
        Array.from({ length: count }, (_, j) => values[Math.min(i, j) * count + Math.max(i, j)] as number),
      ),
    );

describe('groups by affinity', () => {
  test('are a partition into equal groups, no worse than the mean of all partitions, and finds planted ones', () => {
    for (const k of [1, 2, 3, 6]) {
      fc.assert(
        fc.property(symmetric(6), (affinity) => {
          const groups = affinityGroups(affinity, k);
          expect(groups.every((group) => group.length === k)).toBe(true);
          expect(groups.flat().sort()).toEqual([0, 1, 2, 3, 4, 5]);
          const all = [...partitions([0, 1, 2, 3, 4, 5], k)].map((other) => within(affinity, other));
          const mean = all.reduce((sum, value) => sum + value, 0) / all.length;
          expect(within(affinity, groups)).toBeGreaterThanOrEqual(mean - 1e-6);
        }),
        { numRuns: 50 },
      );
    }
    const planted = [
      [0, 3, 5],
      [1, 2, 4],
    ];
    const affinity = Array.from({ length: 6 }, (_, i) =>
      Array.from({ length: 6 }, (_, j) =>
        planted.some((own) => own.includes(i) && own.includes(j)) ? 0.6 : 0.5,
      ),
    );
    expect(affinityGroups(affinity, 3)).toEqual(planted);
    expect(() => affinityGroups(affinity, 4)).toThrow(RangeError);
  });
});
