import { readdir, readFile, realpath, rename, rm, writeFile } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import { MolaeError } from '../errors.ts';
import { attempt, ioError, makeFolder, systemCode } from '../files.ts';
import { type ReplaceableOutput, refuseExisting, refuseUnwritable } from './existing-output.ts';
import { OutputLock } from './output-lock.ts';

/** What a stopped run was doing; another run goes on from it only if it wants exactly the same. */
const PLAN_FILE = 'molae-conversion.json';

/** Ends the name of a finished file's record. */
const DONE = '.done';

/** What a stopped run had found out before it made files. */
const MEMORY_FILE = 'molae-memory.json';

const CHECKPOINT: ReplaceableOutput = {
  name: 'checkpoint',
  is: (files) => files.includes('config.json') && files.some((name) => name.endsWith('.safetensors')),
};

/**
 * The folder a conversion writes to: a hidden one beside the output, which takes the output's place when all is done.
 * What a stopped run has finished is found again by the next run with the same plan.
 */
export class OutputFolder {
  /** Where the result will be. */
  readonly path: string;
  /** Where it is being made. */
  readonly partial: string;
  readonly #lock: OutputLock;

  private constructor(path: string, lock: OutputLock) {
    this.path = path;
    this.partial = partialPath(path);
    this.#lock = lock;
  }

  /**
   * @param plan identifies source and options; a partial folder of another plan is thrown away.
   * @throws OUTPUT_EXISTS, OUTPUT_BUSY, INVALID_ARGUMENT when the output is the source or no checkpoint; IO.
   */
  static async open(input: string, output: string, plan: unknown, force: boolean): Promise<OutputFolder> {
    const path = resolve(output);
    await OutputFolder.check(input, path, force);
    await attempt('create', dirname(path), () => makeFolder(dirname(path)));
    const lock = await OutputLock.acquire(join(dirname(path), `.${basename(path)}.molae-lock`), path);
    try {
      await refuseExisting(path, force, CHECKPOINT); // a rival may have finished meanwhile
      const folder = new OutputFolder(path, lock);
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
   * @throws OUTPUT_EXISTS, INVALID_ARGUMENT, IO.
   */
  static async check(input: string, output: string, force: boolean): Promise<void> {
    const path = resolve(output);
    await refuseOverlap(input, path);
    await refuseExisting(path, force, CHECKPOINT);
    await refuseUnwritable(path);
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

  /** Keeps what a run that is stopped need not find out again. */
  remember(memory: unknown): Promise<void> {
    return this.#write(join(this.partial, MEMORY_FILE), JSON.stringify(memory));
  }

  /** What was recorded with a finished file, undefined where it is still to be made. */
  async finished(file: string): Promise<unknown> {
    try {
      return JSON.parse(await readFile(this.#record(file), 'utf8'));
    } catch (cause) {
      if (systemCode(cause) === 'ENOENT' || cause instanceof SyntaxError) return undefined;
      throw ioError('read', this.#record(file), cause);
    }
  }

  /** Records that a file is finished, with what the report needs to know of it. */
  async finish(file: string, record: unknown): Promise<void> {
    const path = this.#record(file);
    await this.#write(`${path}.tmp`, JSON.stringify(record));
    await attempt('rename', path, () => rename(`${path}.tmp`, path));
  }

  /** Puts the result in its place; the records of finished files go. */
  async commit(): Promise<void> {
    for (const name of await attempt('list', this.partial, () => readdir(this.partial))) {
      const isRecord = name.endsWith(DONE) || name.endsWith('.tmp');
      if (isRecord || name === PLAN_FILE || name === MEMORY_FILE) await this.remove(name);
    }
    const old = await this.#setAside();
    await attempt('rename', this.path, () => rename(this.partial, this.path));
    if (old !== undefined) await attempt('remove', old, () => rm(old, { recursive: true }));
  }

  async remove(name: string): Promise<void> {
    const path = join(this.partial, name);
    await attempt('remove', path, () => rm(path, { force: true }));
  }

  /** Throws away everything made so far. */
  async discard(): Promise<void> {
    await rm(this.partial, { recursive: true, force: true }).catch(() => {});
  }

  /** Lets another run have the output. */
  close(): Promise<void> {
    return this.#lock.release();
  }

  async #resumeOrStart(plan: string): Promise<void> {
    const path = join(this.partial, PLAN_FILE);
    const before = await readFile(path, 'utf8').catch(() => undefined);
    if (before === plan) return;
    await attempt('remove', this.partial, () => rm(this.partial, { recursive: true, force: true }));
    await attempt('create', this.partial, () => makeFolder(this.partial));
    await this.#write(path, plan);
  }

  async #setAside(): Promise<string | undefined> {
    const old = `${this.partial}-replaced`;
    try {
      await rm(old, { recursive: true, force: true });
      await rename(this.path, old);
      return old;
    } catch (cause) {
      if (systemCode(cause) === 'ENOENT') return undefined;
      throw ioError('replace', this.path, cause);
    }
  }

  #record(file: string): string {
    return join(this.partial, `${file}${DONE}`);
  }

  async #write(path: string, text: string): Promise<void> {
    await attempt('write', path, () => writeFile(path, text, { flush: true } as { encoding?: null }));
  }
}

/** Where the output `path` is being made. */
function partialPath(path: string): string {
  return join(dirname(path), `.${basename(path)}.molae-partial`);
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
