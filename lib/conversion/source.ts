import { type Checkpoint, openCheckpoint } from '../checkpoint/checkpoint.ts';
import { checkDevice, type Device, openDevice } from '../device.ts';
import { MolaeError } from '../errors.ts';

/** @throws MolaeError `UNSUPPORTED_CHECKPOINT` for what was converted already. */
export function requireDense({ format, path }: Checkpoint): void {
  if (format === 'dense') return;
  throw new MolaeError(
    'UNSUPPORTED_CHECKPOINT',
    `${path} was converted already: take the checkpoint it came from`,
  );
}

/** Opens a checkpoint that can still be converted. Throws as `openCheckpoint` and {@link requireDense}. */
export async function openDense(path: string): Promise<Checkpoint> {
  const checkpoint = await openCheckpoint(path);
  try {
    requireDense(checkpoint);
    return checkpoint;
  } catch (error) {
    await checkpoint.close();
    throw error;
  }
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
