import { describe, expect, test } from 'vitest';
import { checkGrouping, mixAffinities } from '../../../lib/methods/grouping/grouping.ts';
import { affinityGroups } from '../../../lib/methods/grouping/partition.ts';
import { Random } from '../../support/random.ts';

const N = 6;

function symmetric(seed: number, map: (value: number) => number = (value) => value): Float64Array[] {
  const random = new Random(seed);
  const rows = Array.from({ length: N }, () => new Float64Array(N));
  for (const [i, row] of rows.entries()) {
    for (let j = 0; j <= i; j++) {
      row[j] = map(random.uniform());
      (rows[j] as Float64Array)[i] = row[j] as number;
    }
  }
  return rows;
}

describe('mixed affinities', () => {
  test('weigh kinds by how much they tell pairs apart, whatever their units and what all pairs have in common', () => {
    const together = { values: symmetric(2), share: 0.5 };
    const plain = mixAffinities(N, [{ values: symmetric(1), share: 0.5 }, together]);
    const scaled = mixAffinities(N, [
      { values: symmetric(1, (value) => 1000 * value + 7), share: 0.5 },
      together,
    ]);
    for (const k of [2, 3]) expect(affinityGroups(scaled, k)).toEqual(affinityGroups(plain, k));
    // Half of each: both spread alike over pairs.
    const pairs = (rows: readonly Float64Array[]) => rows.flatMap((row, i) => [...row.subarray(i + 1)]);
    const spread = (values: readonly number[]) => {
      const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
      return Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / values.length);
    };
    for (const values of [symmetric(1), symmetric(2, (value) => 1e-3 * value)])
      expect(spread(pairs(mixAffinities(N, [{ values, share: 0.5 }])))).toBeCloseTo(0.5, 10);
  });

  test('leave out what tells no pairs apart, and what is not there', () => {
    const alike = symmetric(3, () => 0.25);
    const told = symmetric(4);
    const only = mixAffinities(N, [{ values: told, share: 0.5 }]);
    const all = mixAffinities(N, [
      { values: alike, share: 0.5 },
      { values: told, share: 0.5 },
      { values: undefined, share: 0.5 },
    ]);
    expect(all.map((row) => [...row])).toEqual(only.map((row) => [...row]));
  });
});

describe('a grouping', () => {
  const check = (options: object, groupSize: number | undefined = 2, numExperts = 16) =>
    checkGrouping(options, groupSize, numExperts);

  test('is consecutive or by affinity, with co-activation from 0 to 1', () => {
    for (const good of [
      {},
      { grouping: 'consecutive' },
      { grouping: 'affinity' },
      { grouping: 'affinity', coActivation: 0 },
      { grouping: 'affinity', coActivation: 1 },
    ])
      check(good);
    check({ grouping: 'consecutive' }, 1);
    check({ grouping: 'affinity' }, undefined);
    for (const [bad, words] of [
      [{ grouping: 'random' }, /consecutive or affinity for grouping/],
      [{ grouping: 'affinity', coActivation: 1.5 }, /from 0 to 1 for coActivation/],
      [{ grouping: 'affinity', coActivation: Number.NaN }, /from 0 to 1/],
      [{ grouping: 'affinity', coActivation: '1' }, /from 0 to 1/],
      [{ coActivation: 0.5 }, /needs grouping affinity/],
    ] as const) {
      expect(() => check(bad)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
      expect(() => check(bad)).toThrow(words);
    }
  });

  test('by affinity is refused where a group size leaves no choice, with those that do', () => {
    expect(() => check({ grouping: 'affinity' }, 1)).toThrow(
      /no effect with groups of 1: each expert has its own. Give a groupSize of 2, 4, 8/,
    );
    expect(() => check({ grouping: 'affinity' }, 16)).toThrow(
      /no effect with groups of 16: one has all 16 experts. Give a groupSize of 2, 4, 8/,
    );
    expect(() => check({ grouping: 'affinity' }, 7, 7)).toThrow(/7 experts have no other equal groups/);
  });
});
