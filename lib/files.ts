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
