import { statfs } from 'node:fs/promises';

/** What a conversion still has to write, and the room where it writes, which is less. */
export interface SpaceShortage {
  readonly folder: string;
  /** Of weights. */
  readonly neededBytes: number;
  readonly freeBytes: number;
}

/** @internal Undefined where there is room, or nobody knows: not all file systems say. */
export async function spaceShortage(folder: string, neededBytes: number): Promise<SpaceShortage | undefined> {
  const { blocks, bavail, bsize } = await statfs(folder).catch(() => ({ blocks: 0, bavail: 0, bsize: 0 }));
  const freeBytes = bavail * bsize;
  return blocks === 0 || freeBytes >= neededBytes ? undefined : { folder, neededBytes, freeBytes };
}
