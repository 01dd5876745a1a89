import { join } from 'node:path';
import { TurnProcess } from '../support/turn-process.ts';
import { PEERS } from './folders.ts';

/** A peer in Python, by the python that PYTHON names. */
export function startPython<Ready>(
  script: string,
  args: readonly (string | number)[],
  threads: number,
): Promise<TurnProcess<Ready>> {
  const env = {
    OPENBLAS_NUM_THREADS: String(threads),
    OMP_NUM_THREADS: String(threads),
    MKL_NUM_THREADS: String(threads),
  };
  return TurnProcess.start(process.env.PYTHON ?? 'python3', [join(PEERS, script), ...args.map(String)], env);
}
