import { constants, type Dirent } from 'node:fs';
import { access, lstat, readdir } from 'node:fs/promises';
import { dirname } from 'node:path';
import { MolaeError } from '../errors.ts';
import { attempt, ioError, systemCode } from '../files.ts';

/** What a command may replace: nobody loses a home folder. */
export interface ReplaceableOutput {
  /** For messages: "is no checkpoint". */
  readonly name: string;
  /** Whether a folder with these files is one. */
  is(files: readonly string[]): boolean;
  /** Whether an entry of such a folder may be lost with it. */
  owns(entry: Dirent): boolean;
}

const FINE = 'a folder that is new or empty is fine';

/**
 * The one rule of every output folder: one that exists and is not empty is replaced only when asked, and only when it is of
 * the kind that is written and nothing of others would be lost with it.
 *
 * @throws MolaeError `OUTPUT_EXISTS`; `IO`.
 */
export async function refuseExisting(path: string, force: boolean, kind: ReplaceableOutput): Promise<void> {
  const stats = await lstat(path).catch((cause: unknown) => {
    if (systemCode(cause) === 'ENOENT') return undefined;
    throw ioError('look at', path, cause);
  });
  if (stats === undefined) return;
  if (!stats.isDirectory()) {
    const found = stats.isSymbolicLink() ? 'is a link' : 'is not a folder';
    throw new MolaeError('OUTPUT_EXISTS', `The output ${path} exists and ${found}: ${FINE}`);
  }
  const entries = await attempt('list', path, () => readdir(path, { withFileTypes: true }));
  if (entries.length === 0) return;
  if (!kind.is(entries.map(({ name }) => name))) {
    throw new MolaeError(
      'OUTPUT_EXISTS',
      `The output ${path} exists and is no ${kind.name}: it will not be replaced, even with force; ${FINE}`,
    );
  }
  if (!force)
    throw new MolaeError('OUTPUT_EXISTS', `The output ${path} exists; use force (--force) to replace it`);
  const foreign = entries.find((entry) => !kind.owns(entry));
  if (foreign) {
    throw new MolaeError(
      'OUTPUT_EXISTS',
      `The output ${path} has ${foreign.name} in it, which is no part of a ${kind.name} and would be lost: it will not be replaced, even with force; ${FINE}`,
    );
  }
}

/**
 * Refuses an output that cannot be made: its folder, or the nearest above it that exists, takes no files.
 *
 * @throws MolaeError `IO` naming that folder.
 */
export async function refuseUnwritable(path: string): Promise<void> {
  const folder = dirname(path);
  try {
    await access(folder, constants.W_OK | constants.X_OK);
  } catch (cause) {
    if (systemCode(cause) !== 'ENOENT' || folder === path) throw ioError('write to', folder, cause);
    await refuseUnwritable(folder);
  }
}
