import { MolaeError } from '../errors.ts';
import { OPERATORS, type Operator } from '../operators.ts';

/** @internal Says which matrix of which expert; who knows the tensor's name puts it in. */
export class NonFiniteExpertError extends MolaeError {
  readonly operator: Operator;
  /** Its number in the layer. */
  readonly expert: number;
  /** Row and column in the expert's matrix. */
  readonly position: string;

  constructor(operator: Operator, expert: number, position: string, cause: MolaeError) {
    super('NON_FINITE', `The ${operator} matrix of expert ${expert} has NaN or infinity at ${position}`, {
      cause,
    });
    this.operator = operator;
    this.expert = expert;
    this.position = position;
  }
}

/**
 * @internal Native work on one expert, which knows the place of a NaN or infinity but not the expert's number.
 *
 * @param operator of the matrix it gets; undefined where it gets all three, and says itself which of them.
 */
export async function namingExpert<Result>(
  expert: number,
  operator: Operator | undefined,
  work: () => Promise<Result>,
): Promise<Result> {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof MolaeError) || error.code !== 'NON_FINITE') throw error;
    const [, position] = / at (\[.*\])$/.exec(error.message) ?? [];
    const bad = operator ?? OPERATORS.find((name) => error.message.startsWith(`${name} `));
    if (position === undefined || bad === undefined) throw error;
    throw new NonFiniteExpertError(bad, expert, position, error);
  }
}
