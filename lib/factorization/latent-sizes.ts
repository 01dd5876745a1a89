import { expected, MolaeError } from '../errors.ts';
import type { Operator } from '../operators.ts';

/** An operator of a group that a budget is spent on. */
export interface Spending {
  readonly layer: number;
  readonly operator: Operator;
  readonly group: number;
  /** Descending: what each direction is worth. */
  readonly values: ArrayLike<number>;
  /** Parameters that one direction takes: k·m + n, for a shared gate and up 2·k·m + n. */
  readonly cost: number;
}

/** What `allocateLatentSizes` may spend, in what steps. */
export interface AllocationOptions {
  /** Parameters to spend. */
  readonly budget: number;
  /** Latent sizes are multiples of this (but for the largest, where the space ends). By default 16. */
  readonly step?: number | undefined;
}

/**
 * Spends a budget of parameters on latent directions: always the step that is worth most per parameter. Values that fall
 * off monotonously make this the best choice there is for what it spends; the budget is met to within one step.
 *
 * @returns the latent size of every spending, in their order; each has at least one step.
 * @throws MolaeError `INVALID_ARGUMENT` for a budget that does not pay for one step each.
 */
export function allocateLatentSizes(spendings: readonly Spending[], options: AllocationOptions): number[] {
  const { budget, step = 16 } = options;
  if (!Number.isSafeInteger(step) || step < 1) throw expected('a positive integer', 'step', step);
  const first = spendings.map(({ values }) => Math.min(step, values.length));
  let left = budget - spendings.reduce((sum, { cost }, i) => sum + cost * (first[i] as number), 0);
  if (!(left >= 0)) {
    throw new MolaeError(
      'INVALID_ARGUMENT',
      `A budget of ${budget} parameters does not pay for a latent size of ${step} everywhere`,
    );
  }
  const sizes = [...first];
  for (const { index, size, cost } of byWorth(spendings, step)) {
    // What no longer fits ends this operator, so that sizes stay prefixes of their spectra.
    if (cost > left || size !== (sizes[index] as number)) continue;
    left -= cost;
    sizes[index] = Math.min(size + step, (spendings[index] as Spending).values.length);
  }
  return sizes;
}

interface Step {
  readonly index: number;
  /** The latent size before it. */
  readonly size: number;
  readonly cost: number;
  readonly worth: number;
}

/** All steps after the first of each, best first. */
function byWorth(spendings: readonly Spending[], step: number): Step[] {
  const steps: Step[] = [];
  for (const [index, { values, cost }] of spendings.entries()) {
    for (let size = Math.min(step, values.length); size < values.length; size += step) {
      const end = Math.min(size + step, values.length);
      let worth = 0;
      for (let j = size; j < end; j++) worth += values[j] as number;
      steps.push({ index, size, cost: cost * (end - size), worth: worth / (cost * (end - size)) });
    }
  }
  return steps.sort((a, b) => b.worth - a.worth);
}
