import { type Checkpoint, openCheckpoint } from '../checkpoint/checkpoint.ts';
import { checkDevice, type Device, openDevice } from '../device.ts';
import { MolaeError } from '../errors.ts';

/**
 * Opens a checkpoint that can still be converted.
 *
 * @throws MolaeError as `openCheckpoint`; `UNSUPPORTED_CHECKPOINT` for what was converted already.
 */
export async function openDense(path: string): Promise<Checkpoint> {
  const checkpoint = await openCheckpoint(path);
  if (checkpoint.format === 'dense') return checkpoint;
  await checkpoint.close();
  throw new MolaeError(
    'UNSUPPORTED_CHECKPOINT',
    `${checkpoint.path} was converted already: take the checkpoint it came from`,
  );
}

/** Works with the source of a conversion and a device: the one that is given, or else `auto`, which is let go of afterwards. */
export async function withSource<Result>(
  input: string,
  given: Device | undefined,
  work: (checkpoint: Checkpoint, device: Device) => Promise<Result>,
): Promise<Result> {
  if (given !== undefined) checkDevice(given);
  await using checkpoint = await openDense(input);
  const device = given ?? (await openDevice('auto'));
  try {
    return await work(checkpoint, device);
  } finally {
    if (!given) device.dispose();
  }
}
