import { open } from 'node:fs/promises';
import { attempt, systemCode } from '../files.ts';

/** Of file systems that cannot sync folders, and of folders that may be written to but not be read. */
const CANNOT = ['EINVAL', 'ENOTSUP', 'EACCES'];

/**
 * Has a file's content, or a folder's names, on the disk: what comes after does not outlive a power cut that this did not.
 *
 * @throws MolaeError `IO`.
 */
export function syncToDisk(path: string): Promise<void> {
  return attempt('sync', path, async () => {
    try {
      await using handle = await open(path);
      await handle.sync();
    } catch (cause) {
      if (!CANNOT.includes(systemCode(cause) ?? '')) throw cause;
    }
  });
}
