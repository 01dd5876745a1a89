import { mkdir } from 'node:fs/promises';
import { dirname } from 'node:path';
import { MolaeError } from './errors.ts';

/** A failed system call, with the path, what was tried and the system's own error as the cause. */
export function ioError(action: string, path: string, cause: unknown): MolaeError {
  const reason = cause instanceof Error ? cause.message : String(cause);
  return new MolaeError('IO', `Could not ${action} ${path}: ${reason}`, { cause });
}

/** Awaits a system call; what it fails with becomes an {@link ioError}. */
export async function attempt<Result>(
  action: string,
  path: string,
  call: () => Promise<Result>,
): Promise<Result> {
  try {
    return await call();
  } catch (cause) {
    throw ioError(action, path, cause);
  }
}

/** The `code` of a Node.js system error, such as `ENOENT`. */
export function systemCode(error: unknown): string | undefined {
  return error instanceof Error && 'code' in error && typeof error.code === 'string' ? error.code : undefined;
}

/**
 * Creates a folder and what is missing above it. (Node's own `recursive` never returns where a file system such as /proc
 * answers ENOENT for good.)
 */
export async function makeFolder(path: string): Promise<void> {
  try {
    await mkdir(path);
  } catch (cause) {
    if (systemCode(cause) === 'EEXIST') return;
    if (systemCode(cause) !== 'ENOENT' || dirname(path) === path) throw cause;
    await makeFolder(dirname(path));
    await mkdir(path);
  }
}
