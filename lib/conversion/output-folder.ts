import { existsSync } from 'node:fs';
import { readdir, readFile, realpath, rename, rm, writeFile } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import { CONFIG_FILE } from '../checkpoint/config.ts';
import { MolaeError } from '../errors.ts';
import { attempt, ioError, makeFolder, systemCode } from '../files.ts';
import { type ReplaceableOutput, refuseExisting, refuseUnwritable } from './existing-output.ts';
import { refuseMountPoint } from './mount-point.ts';
import { OutputLock } from './output-lock.ts';
import { SIDE_FILES } from './side-files.ts';
import { syncToDisk } from './sync.ts';

/** What a stopped run was doing; another run goes on from it only if it wants exactly the same. */
const PLAN_FILE = 'molae-conversion.json';

/** Ends the name of a finished file's record. */
const DONE = '.done';

/** What a stopped run had found out before it made files. */
const MEMORY_FILE = 'molae-memory.json';

/** The output itself, beside all that is kept for another run. */
const RESULT = 'result';

const WEIGHTS = '.safetensors';

/** What renaming a folder to one that has files in it fails with. */
const OCCUPIED = ['ENOTEMPTY', 'EEXIST'];

const CHECKPOINT: ReplaceableOutput = {
  name: 'checkpoint',
  is: (files) => files.includes(CONFIG_FILE) && files.some((name) => name.endsWith(WEIGHTS)),
  owns: (entry) => entry.isFile() && (entry.name.endsWith(WEIGHTS) || SIDE_FILES.test(entry.name)),
};

/**
 * The folder a conversion writes to: in a hidden one beside the output, whose place it takes when all is done.
 * What a stopped run has finished is found again by the next run with the same plan.
 */
export class OutputFolder {
  /** Where the result will be. */
  readonly path: string;
  /** Where it is being made. */
  readonly partial: string;
  /** Has that, and what is kept for another run. */
  readonly #folder: string;
  /** Where what is replaced is meanwhile. */
  readonly #replaced: string;
  readonly #force: boolean;
  readonly #lock: OutputLock;

  private constructor(path: string, force: boolean, lock: OutputLock) {
    this.path = path;
    this.#folder = partialPath(path);
    this.partial = join(this.#folder, RESULT);
    this.#replaced = `${this.#folder}-replaced`;
    this.#force = force;
    this.#lock = lock;
  }

  /**
   * @param plan identifies source and options; what a stopped run of another plan has finished is thrown away with force only.
   * @throws OUTPUT_EXISTS, OUTPUT_UNFINISHED, OUTPUT_BUSY, INVALID_ARGUMENT when the output is the source or no checkpoint; IO.
   */
  static async open(input: string, output: string, plan: unknown, force: boolean): Promise<OutputFolder> {
    const path = resolve(output);
    await OutputFolder.check(input, path, force);
    await attempt('create', dirname(path), () => makeFolder(dirname(path)));
    const lock = await OutputLock.acquire(lockPath(path), path);
    try {
      const folder = new OutputFolder(path, force, lock);
      await folder.#recover();
      await refuseExisting(path, force, CHECKPOINT); // a rival may have finished meanwhile
      await folder.#resumeOrStart(JSON.stringify(plan));
      return folder;
    } catch (error) {
      await lock.release();
      throw error;
    }
  }

  /**
   * Refuses what `open` would, for runs that have long work to do before it.
   *
   * @throws OUTPUT_EXISTS, OUTPUT_BUSY, INVALID_ARGUMENT, IO.
   */
  static async check(input: string, output: string, force: boolean): Promise<void> {
    const path = resolve(output);
    await refuseOverlap(input, path);
    await refuseExisting(path, force, CHECKPOINT);
    await refuseMountPoint(path);
    await refuseUnwritable(path);
    await OutputLock.refuseHeld(lockPath(path), path);
  }

  /** What a stopped run to this output found out, undefined where there is none. Its reader says whether it still holds. */
  static async remembered(output: string): Promise<unknown> {
    const text = await readFile(join(partialPath(resolve(output)), MEMORY_FILE), 'utf8').catch(() => '');
    try {
      return JSON.parse(text);
    } catch {
      return undefined; // none, or one that was being written
    }
  }

  /** Where runs to this output make it, and how many files one that was stopped has finished there. */
  static async kept(output: string): Promise<{ readonly folder: string; readonly files: number }> {
    const folder = partialPath(resolve(output));
    const names = await readdir(folder).catch(() => []);
    return { folder, files: names.filter((name) => name.endsWith(DONE)).length };
  }

  /**
   * For a run that cannot go on from where another one was stopped.
   *
   * @throws OUTPUT_UNFINISHED where that has finished something, unless forced.
   */
  static async refuseDiscarding(output: string, force: boolean): Promise<void> {
    const { folder, files } = await OutputFolder.kept(output);
    // Without its plan nothing can go on: what is left of a folder that was being removed.
    if (files === 0 || force || !existsSync(join(folder, PLAN_FILE))) return;
    throw new MolaeError(
      'OUTPUT_UNFINISHED',
      `A stopped conversion to ${output}, of another source or with other options, left finished files in ${folder} (${files}): the same conversion goes on from there; use force (--force) to begin anew`,
    );
  }

  /** Keeps what a run that is stopped need not find out again. */
  remember(memory: unknown): Promise<void> {
    return this.#write(join(this.#folder, MEMORY_FILE), JSON.stringify(memory));
  }

  /** What was recorded with a finished file, undefined where it is still to be made. */
  async finished(file: string): Promise<unknown> {
    const path = this.#record(file);
    try {
      const record: unknown = JSON.parse(await readFile(path, 'utf8'));
      if (existsSync(join(this.partial, file))) return record;
    } catch (cause) {
      if (systemCode(cause) === 'ENOENT' || cause instanceof SyntaxError) return undefined;
      throw ioError('read', path, cause);
    }
    // Killed when the result was in its place: the record must not vouch for the file while it is made again.
    await attempt('remove', path, () => rm(path));
    return undefined;
  }

  /** Records that a file is finished, with what the report needs to know of it. */
  async finish(file: string, record: unknown): Promise<void> {
    const path = this.#record(file);
    await this.#write(`${path}.tmp`, JSON.stringify(record));
    await attempt('rename', path, () => rename(`${path}.tmp`, path));
  }

  /**
   * Puts the result in its place, once it is on the disk; only then all else goes.
   *
   * @throws OUTPUT_EXISTS where something has come there meanwhile; IO.
   */
  async commit(): Promise<void> {
    await this.#sync();
    const isReplacement = await this.#takePlace();
    await syncToDisk(dirname(this.path));
    await attempt('remove', this.#folder, async () => {
      await rm(join(this.#folder, PLAN_FILE));
      await rm(this.#folder, { recursive: true });
    });
    if (isReplacement) await this.#removeReplaced();
  }

  /** Throws away everything made so far. */
  async discard(): Promise<void> {
    await rm(this.#folder, { recursive: true, force: true }).catch(() => {});
  }

  /** Lets another run have the output. */
  close(): Promise<void> {
    return this.#lock.release();
  }

  async #resumeOrStart(plan: string): Promise<void> {
    const path = join(this.#folder, PLAN_FILE);
    const isResumed = (await readFile(path, 'utf8').catch(() => undefined)) === plan;
    if (!isResumed) {
      await OutputFolder.refuseDiscarding(this.path, this.#force);
      await attempt('remove', this.#folder, () => rm(this.#folder, { recursive: true, force: true }));
    }
    await attempt('create', this.partial, () => makeFolder(this.partial));
    if (!isResumed) await this.#write(path, plan);
  }

  /** A killed run may have left what it replaced beside its place: that goes back, or away if the new one has arrived. */
  async #recover(): Promise<void> {
    try {
      await rename(this.#replaced, this.path);
    } catch (cause) {
      const code = systemCode(cause) ?? '';
      if (OCCUPIED.includes(code)) return this.#removeReplaced();
      // ENOTDIR: a file has come there, which is refused.
      if (code !== 'ENOENT' && code !== 'ENOTDIR') throw ioError('put back', this.path, cause);
    }
  }

  /** Removes what a stopped run made beside finished files: all of it is made anew, also where it may not be written to. */
  async removeUnrecorded(): Promise<void> {
    for (const path of await this.#unrecorded()) await attempt('remove', path, () => rm(path));
  }

  /** Finished files were synced before they got their records. */
  async #sync(): Promise<void> {
    await Promise.all((await this.#unrecorded()).map(syncToDisk));
    await syncToDisk(this.partial);
  }

  async #unrecorded(): Promise<string[]> {
    const list = (path: string) => attempt('list', path, () => readdir(path));
    const records = new Set(await list(this.#folder));
    const names = (await list(this.partial)).filter((name) => !records.has(`${name}${DONE}`));
    return names.map((name) => join(this.partial, name));
  }

  /** Whether something was there. It is back if the result cannot take its place. */
  async #takePlace(): Promise<boolean> {
    try {
      await rename(this.partial, this.path); // an empty folder may be there
      return false;
    } catch (cause) {
      if (!OCCUPIED.includes(systemCode(cause) ?? '')) throw ioError('rename', this.path, cause);
    }
    await this.#refuseRival();
    await attempt('replace', this.path, () => rename(this.path, this.#replaced));
    try {
      await rename(this.partial, this.path);
      return true;
    } catch (cause) {
      await attempt('put back', this.path, () => rename(this.#replaced, this.path));
      throw ioError('replace', this.path, cause);
    }
  }

  /** Throws, with what is to be done, where something that may not be replaced has come to the output meanwhile. */
  async #refuseRival(): Promise<void> {
    try {
      await refuseExisting(this.path, this.#force, CHECKPOINT);
    } catch (cause) {
      if (!(cause instanceof MolaeError)) throw cause;
      throw new MolaeError(
        cause.code,
        `${cause.message}. It came there meanwhile: all that was made is kept in ${this.#folder}, and the same conversion puts it there once the place is free`,
        { cause },
      );
    }
  }

  #removeReplaced(): Promise<void> {
    return attempt('remove', this.#replaced, () => rm(this.#replaced, { recursive: true }));
  }

  #record(file: string): string {
    return join(this.#folder, `${file}${DONE}`);
  }

  async #write(path: string, text: string): Promise<void> {
    await attempt('write', path, () => writeFile(path, text, { flush: true } as { encoding?: null }));
  }
}

/** Where the output `path` is being made. */
function partialPath(path: string): string {
  return join(dirname(path), `.${basename(path)}.molae-partial`);
}

function lockPath(path: string): string {
  return join(dirname(path), `.${basename(path)}.molae-lock`);
}

/** Output and source must not contain each other. */
async function refuseOverlap(input: string, output: string): Promise<void> {
  const source = await realpath(input).catch(() => resolve(input));
  const target = await realpath(output).catch(() => output);
  const within = (inner: string, outer: string) => inner === outer || inner.startsWith(`${outer}/`);
  if (within(target, source) || within(source, target)) {
    throw new MolaeError(
      'INVALID_ARGUMENT',
      `The output ${output} and the source ${input} must be separate folders`,
    );
  }
}
