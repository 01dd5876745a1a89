import { onlyWay, orAbsent, Peers } from '../support/peers.ts';
import { startPython } from './python.ts';

/** LAPACK by way of numpy: 'gesdd' of a random [rows, cols] matrix, or 'eigh' of its Gram matrix. */
export async function startNumpy(
  what: 'gesdd' | 'eigh',
  rows: number,
  cols: number,
  dtype: 'f32' | 'f64',
  threads: number,
): Promise<Peers<'numpy'>> {
  const args = [what, rows, cols, dtype];
  const numpy = await orAbsent(() => startPython<{ version: string }>('numpy_linalg.py', args, threads));
  return new Peers({ numpy: onlyWay(numpy) }, [numpy]);
}
