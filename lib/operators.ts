import { expected } from './errors.ts';

/** The three matrices of an expert: E(x) = down · (act(gate · x) ⊙ (up · x)). */
export type Operator = 'gate' | 'up' | 'down';

/** All of them, in the order in which everything lists them. */
export const OPERATORS: readonly Operator[] = ['gate', 'up', 'down'];

/** Throws unless `value` names an operator. */
export function checkOperator(value: unknown): asserts value is Operator {
  if (!OPERATORS.includes(value as Operator))
    throw expected(`one of ${OPERATORS.join(', ')}`, 'operator', value);
}
