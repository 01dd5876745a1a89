import { MolaeError } from '../errors.ts';
import type { Operator } from '../operators.ts';

/** @internal Says which expert of the group; who knows the tensor's name puts it in. */
export class NonFiniteExpertError extends MolaeError {
  readonly operator: Operator;
  readonly index: number;
  readonly position: string;

  constructor(operator: Operator, index: number, cause: MolaeError) {
    const position = cause.message.replace(/^.* at /, '');
    super(
      'NON_FINITE',
      `The ${operator} matrix of expert ${index} of the group has NaN or infinity at ${position}`,
      { cause },
    );
    this.operator = operator;
    this.index = index;
    this.position = position;
  }
}
