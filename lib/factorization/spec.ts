import { expected, MolaeError } from '../errors.ts';
import { OPERATORS, type Operator } from '../experts.ts';

/**
 * The operators to factorize, in the order of `OPERATORS`.
 *
 * @throws MolaeError `INVALID_ARGUMENT` for others, for none, and for a shared B without gate and up.
 */
export function checkOperators(operators: unknown = OPERATORS, sharedGateUp: unknown = false): Operator[] {
  if (!isOperatorList(operators)) throw expected(`some of ${OPERATORS.join(', ')}`, 'operators', operators);
  if (typeof sharedGateUp !== 'boolean') throw expected('true or false', 'sharedGateUp', sharedGateUp);
  if (sharedGateUp && !(operators.includes('gate') && operators.includes('up'))) {
    throw expected('operators with both gate and up, as sharedGateUp needs them,', 'operators', operators);
  }
  return OPERATORS.filter((operator) => operators.includes(operator));
}

/** Bounded before it is looked through: a sparse array may have billions of items. */
function isOperatorList(value: unknown): value is readonly Operator[] {
  return (
    Array.isArray(value) &&
    value.length > 0 &&
    value.length <= OPERATORS.length &&
    value.every((name) => OPERATORS.includes(name))
  );
}

/**
 * The largest r that can hold anything: min(n, k·m), the rank of the stacked matrices at most. Gate and up that share a B
 * are stacked together, and have twice the rows to draw a space from.
 */
export function largestLatentSize(
  { hiddenSize, intermediateSize }: { readonly hiddenSize: number; readonly intermediateSize: number },
  groupSize: number,
  operator: Operator,
  sharedGateUp: boolean,
): number {
  const stacked = sharedGateUp && operator !== 'down' ? 2 : 1;
  return Math.min(hiddenSize, stacked * groupSize * intermediateSize);
}

/** @throws MolaeError `INVALID_ARGUMENT` unless the size is an integer from 1 to `largest`. */
export function checkLatentSize(size: unknown, largest: number, name: string): asserts size is number {
  if (Number.isSafeInteger(size) && (size as number) >= 1 && (size as number) <= largest) return;
  const wanted = `an integer from 1 to ${largest} (the smaller of hidden size and stacked intermediate sizes)`;
  throw expected(wanted, name, size);
}

/** @throws MolaeError `INVALID_ARGUMENT` unless gate and up, which share a B, have one r: in each group, where they are listed. */
export function checkSharedLatentSize(
  gate: number | readonly number[] | undefined,
  up: number | readonly number[] | undefined,
): void {
  if (String(gate) === String(up)) return;
  throw new MolaeError(
    'INVALID_ARGUMENT',
    `sharedGateUp needs one latentSize for gate and up but received ${gate} and ${up}`,
  );
}
