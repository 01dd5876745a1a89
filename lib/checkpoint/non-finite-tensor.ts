import { MolaeError } from '../errors.ts';
import { NonFiniteExpertError } from '../factorization/non-finite-expert.ts';
import type { Checkpoint } from './checkpoint.ts';
import { locateExpert } from './family.ts';

/** Work on the experts of a layer of a checkpoint: a NaN or infinity among them is told by the name of the tensor that has it. */
export async function namingTensor<Result>(
  { family, spec }: Pick<Checkpoint, 'family' | 'spec'>,
  layer: number,
  work: () => Promise<Result>,
): Promise<Result> {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof NonFiniteExpertError)) throw error;
    const { expert, operator, position } = error;
    const { name } = locateExpert(family, spec, layer, expert, operator);
    // A tensor that holds more than this matrix does not say which.
    const part = family.expertSlice ? ` of the ${operator} matrix of expert ${expert}` : '';
    throw new MolaeError('NON_FINITE', `Tensor ${name} has NaN or infinity at ${position}${part}`, {
      cause: error,
    });
  }
}
