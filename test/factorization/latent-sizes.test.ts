import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { allocateLatentSizes, type Spending } from '../../lib/factorization/latent-sizes.ts';

const spending = (values: number[], cost: number): Spending => ({
  layer: 0,
  operator: 'gate',
  group: 0,
  values: [...values].sort((a, b) => b - a),
  cost,
});

const spendings = fc.array(
  fc
    .tuple(
      fc.array(fc.double({ min: 0.001, max: 100, noNaN: true }), { minLength: 1, maxLength: 6 }),
      fc.integer({ min: 1, max: 4 }),
    )
    .map(([values, cost]) => spending(values, cost)),
  { minLength: 1, maxLength: 4 },
);

/** What is lost of all values with these sizes. */
function lost(all: readonly Spending[], sizes: readonly number[]): number {
  return all.reduce(
    (sum, { values }, i) =>
      sum +
      Array.from(values)
        .slice(sizes[i])
        .reduce((tail, value) => tail + value, 0),
    0,
  );
}

const spent = (all: readonly Spending[], sizes: readonly number[]) =>
  all.reduce((sum, { cost }, i) => sum + cost * (sizes[i] as number), 0);

/** The least that any sizes within the budget lose, by trying all. */
function bruteForce(all: readonly Spending[], budget: number): number {
  const [head, ...rest] = all;
  if (!head) return budget >= 0 ? 0 : Number.POSITIVE_INFINITY;
  let least = Number.POSITIVE_INFINITY;
  for (let size = 1; size <= head.values.length; size++) {
    const left = budget - size * head.cost;
    if (left >= 0) least = Math.min(least, lost([head], [size]) + bruteForce(rest, left));
  }
  return least;
}

describe('allocateLatentSizes', () => {
  test('with one cost for all, no other sizes within the budget lose less', () => {
    fc.assert(
      fc.property(spendings, fc.integer({ min: 0, max: 30 }), (drawn, more) => {
        const all = drawn.map((one) => ({ ...one, cost: 1 }));
        const budget = all.length + more;
        const sizes = allocateLatentSizes(all, { budget, step: 1 });
        expect(lost(all, sizes)).toBeLessThanOrEqual(bruteForce(all, budget) * (1 + 1e-9) + 1e-9);
      }),
    );
  });

  test('never spends more than the budget, and gives everything at least one step and at most its space', () => {
    fc.assert(
      fc.property(
        spendings,
        fc.integer({ min: 0, max: 60 }),
        fc.integer({ min: 1, max: 3 }),
        (all, more, step) => {
          const least = all.reduce((sum, { values, cost }) => sum + cost * Math.min(step, values.length), 0);
          const sizes = allocateLatentSizes(all, { budget: least + more, step });
          expect(spent(all, sizes)).toBeLessThanOrEqual(least + more);
          for (const [i, { values }] of all.entries()) {
            expect(sizes[i]).toBeGreaterThanOrEqual(Math.min(step, values.length));
            expect(sizes[i]).toBeLessThanOrEqual(values.length);
            expect(sizes[i] === values.length || (sizes[i] as number) % step === 0).toBe(true);
          }
        },
      ),
    );
  });

  test('loses no more than the same size everywhere, where all cost the same', () => {
    fc.assert(
      fc.property(
        fc.array(fc.array(fc.double({ min: 0, max: 1, noNaN: true }), { minLength: 6, maxLength: 6 }), {
          minLength: 1,
          maxLength: 5,
        }),
        fc.integer({ min: 1, max: 6 }),
        (rows, size) => {
          const all = rows.map((values) => spending(values, 3));
          const sizes = allocateLatentSizes(all, { budget: 3 * size * all.length, step: 1 });
          const uniform = all.map(() => size);
          expect(lost(all, sizes)).toBeLessThanOrEqual(lost(all, uniform) + 1e-12);
        },
      ),
    );
  });

  test('a step that no longer fits ends its operator: a cheaper one behind it would not stay a prefix', () => {
    expect(allocateLatentSizes([spending([5, 4, 3, 2, 1], 1)], { budget: 3, step: 2 })).toEqual([2]);
  });

  test('refuses a budget that does not pay for one step each, and a step that is none', () => {
    const all = [spending([3, 2, 1], 10), spending([3, 2, 1], 10)];
    expect(() => allocateLatentSizes(all, { budget: 39, step: 2 })).toThrow(
      /does not pay for a latent size of 2/,
    );
    expect(() => allocateLatentSizes(all, { budget: 39, step: 0 })).toThrow(/step/);
  });
});
