import { readFile, realpath } from 'node:fs/promises';
import { MolaeError } from '../errors.ts';

/** What is mounted where in this process's view, a line each (Linux's proc(5)). */
const MOUNTS = '/proc/self/mountinfo';

/**
 * Refuses an output that something is mounted on, such as a container's volume: it may be empty, but nothing can take its
 * place. On systems without a list of mounts none is refused; there the last step of the conversion fails, which keeps all.
 *
 * @throws MolaeError `INVALID_ARGUMENT`.
 */
export async function refuseMountPoint(path: string): Promise<void> {
  const folder = await realpath(path).catch(() => undefined);
  if (folder === undefined) return; // not there yet
  const mounts = await readFile(MOUNTS, 'utf8').catch(() => '');
  if (!mountPoints(mounts).includes(folder)) return;
  throw new MolaeError(
    'INVALID_ARGUMENT',
    `The output ${path} is a mount point, which nothing can take the place of; give a folder inside it`,
  );
}

/** @internal The fifth field of each line; spaces and the like are octal there. */
export function mountPoints(mounts: string): string[] {
  return mounts.split('\n').flatMap((line) => {
    const path = line.split(' ')[4];
    if (path === undefined) return [];
    return [path.replace(/\\(\d{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)))];
  });
}
