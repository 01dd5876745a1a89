/** The three matrices of an expert: E(x) = down · (act(gate · x) ⊙ (up · x)). */
export type Operator = 'gate' | 'up' | 'down';

/** All of them, in the order in which everything lists them. */
export const OPERATORS: readonly Operator[] = ['gate', 'up', 'down'];
