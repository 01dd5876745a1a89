import { MolaeError } from '../errors.ts';

export { quote } from '../errors.ts';

/** A checkpoint that contradicts itself or lacks a part. `where` is the file (and, after a colon, the tensor or field). */
export function badCheckpoint(where: string, problem: string, cause?: unknown): MolaeError {
  return new MolaeError(
    'BAD_CHECKPOINT',
    `${where}: ${problem}`,
    cause === undefined ? undefined : { cause },
  );
}

/** A sound checkpoint of a kind that molae does not know. */
export function unsupportedCheckpoint(where: string, problem: string): MolaeError {
  return new MolaeError('UNSUPPORTED_CHECKPOINT', `${where}: ${problem}`);
}
