/** The three matrices of an expert: E(x) = down · (act(gate · x) ⊙ (up · x)). */
export type Operator = 'gate' | 'up' | 'down';

export const OPERATORS: readonly Operator[] = ['gate', 'up', 'down'];
