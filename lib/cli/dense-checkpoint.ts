import { type Checkpoint, openCheckpoint } from '../checkpoint/checkpoint.ts';
import { MolaeError } from '../errors.ts';

/** Opens a checkpoint that can still be converted. */
export async function openDense(path: string): Promise<Checkpoint> {
  const checkpoint = await openCheckpoint(path);
  if (checkpoint.format === 'dense') return checkpoint;
  await checkpoint.close();
  throw new MolaeError(
    'UNSUPPORTED_CHECKPOINT',
    `${path} was converted already: take the checkpoint it came from`,
  );
}
