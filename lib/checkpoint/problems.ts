import { MolaeError } from '../errors.ts';

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

/** A value from a file, short enough for a message whatever its size. */
export function quote(value: unknown): string {
  if (typeof value === 'string')
    return JSON.stringify(value.length > 80 ? `${value.slice(0, 77)}...` : value);
  if (Array.isArray(value)) {
    return value.length > 8 ? `an array of ${value.length}` : `[${value.map(quote).join(', ')}]`;
  }
  if (typeof value === 'object' && value !== null) return 'an object';
  return String(value);
}
