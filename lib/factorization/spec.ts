import { expected, MolaeError } from '../errors.ts';
import { OPERATORS, type Operator } from '../operators.ts';
import type { Partition } from './groups.ts';

/**
 * `gram`: eigenvectors of Σ W_iᵀW_i, a fraction of the cost. `svd`: a direct SVD of the stacked experts in f64, the
 * reference, with the whole stack in memory.
 */
export type Solver = 'gram' | 'svd';

/** How the experts of a layer are factorized. */
export interface FactorizationSpec {
  /** r, for all operators or for each; at most min(n, k·m). Operators without one stay dense. */
  readonly latentSize: number | Readonly<Partial<Record<Operator, number>>>;
  /** The operators to factorize; by default those that have a latent size. The others stay dense. */
  readonly operators?: readonly Operator[] | undefined;
  /** One B for gate and up, so that z_gate = z_up. */
  readonly sharedGateUp?: boolean | undefined;
  /** By default `gram`. */
  readonly solver?: Solver | undefined;
  /** Truncate each expert to this rank first (the paper's first step): never a gain, by default off. */
  readonly rankReduction?: number | undefined;
  /** Also find the control error, which costs the first pass once more. */
  readonly control?: boolean | undefined;
}

/** A FactorizationSpec with its defaults, checked against a layer's sizes. */
export interface CheckedSpec {
  readonly latentSizes: Readonly<Record<Operator, number>>;
  readonly operators: readonly Operator[];
  readonly sharedGateUp: boolean;
  readonly solver: Solver;
  readonly rankReduction: number;
  readonly control: boolean;
}

/** Throws `INVALID_ARGUMENT` unless the spec fits the sizes and the smallest group. */
export function checkSpec(
  spec: FactorizationSpec,
  sizes: { readonly hiddenSize: number; readonly intermediateSize: number },
  groups: Partition,
): CheckedSpec {
  const { solver = 'gram', rankReduction = 0, control = false, sharedGateUp = false } = spec;
  const operators = factoredOperators(spec);
  if (solver !== 'gram' && solver !== 'svd') throw expected('gram or svd', 'solver', solver);
  if (!Number.isSafeInteger(rankReduction) || rankReduction < 0) {
    throw expected('a non-negative integer', 'rankReduction', rankReduction);
  }
  const smallest = Math.min(...groups.map((group) => group.length));
  const latentSizes = { gate: 0, up: 0, down: 0 };
  for (const name of operators) {
    const size = typeof spec.latentSize === 'object' ? spec.latentSize?.[name] : spec.latentSize;
    checkLatentSize(size, largestLatentSize(sizes, smallest, name, sharedGateUp), `latentSize of ${name}`);
    latentSizes[name] = size;
  }
  if (sharedGateUp) checkSharedLatentSize(latentSizes.gate, latentSizes.up);
  return { latentSizes, operators, sharedGateUp, solver, rankReduction, control };
}

/**
 * The operators to factorize: those asked for, otherwise those that have a latent size.
 *
 * @throws MolaeError `INVALID_ARGUMENT` for none, and as {@link checkOperators}.
 */
export function factoredOperators({
  latentSize,
  operators,
  sharedGateUp,
}: {
  readonly latentSize: number | Readonly<Partial<Record<Operator, unknown>>>;
  readonly operators?: readonly Operator[] | undefined;
  readonly sharedGateUp?: boolean | undefined;
}): Operator[] {
  if (operators !== undefined || typeof latentSize !== 'object' || latentSize === null) {
    return checkOperators(operators, sharedGateUp);
  }
  const sized = OPERATORS.filter((operator) => latentSize[operator] !== undefined);
  if (sized.length === 0) throw expected('a latent size', 'latentSize', latentSize);
  return checkOperators(sized, sharedGateUp);
}

/**
 * A list of operators, in the order of `OPERATORS`.
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
