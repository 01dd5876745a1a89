import { constants, existsSync } from 'node:fs';
import { access, readdir, rm, rmdir, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { type ReplaceableOutput, refuseExisting } from '../conversion/existing-output.ts';
import { attempt, makeFolder } from '../files.ts';

/** Files that a comparison writes: no others are removed. */
const OWN = /^compare(-[a-z-]+\.svg|\.json|\.md)$/;

const COMPARISON: ReplaceableOutput = {
  name: 'comparison',
  is: (files) => files.includes('compare.json'),
  owns: () => true, // what else there is stays
};

/** Where the files of a comparison go, known to be writable before the work begins. */
export class ComparisonFolder {
  readonly path: string;
  readonly #isNew: boolean;

  private constructor(path: string, isNew: boolean) {
    this.path = path;
    this.#isNew = isNew;
  }

  /**
   * @param force replace a comparison that is there: when the new one is complete, not before
   * @throws MolaeError `OUTPUT_EXISTS`; `IO` for a place that cannot be written to.
   */
  static async open(path: string, force: boolean): Promise<ComparisonFolder> {
    await refuseExisting(path, force, COMPARISON);
    // As it is written to from now on, wherever the process goes.
    const folder = resolve(path);
    const isNew = !existsSync(folder);
    await attempt('create', path, () => makeFolder(folder));
    await attempt('write to', path, () => access(folder, constants.W_OK | constants.X_OK));
    return new ComparisonFolder(folder, isNew);
  }

  /** Writes the files, in place of those of a former comparison: what it has beside them goes last. */
  async write(files: ReadonlyMap<string, string>): Promise<void> {
    await attempt('write to', this.path, async () => {
      for (const [name, content] of files) await writeFile(join(this.path, name), content);
      const stale = (await readdir(this.path)).filter((name) => OWN.test(name) && !files.has(name));
      for (const name of stale) await rm(join(this.path, name));
    });
  }

  /** A new folder that is still empty goes: nothing came of it. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#isNew) await rmdir(this.path).catch(() => {});
  }
}
