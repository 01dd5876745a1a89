import { link, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { hostname } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { MolaeError } from '../errors.ts';
import { attempt, ioError, systemCode } from '../files.ts';

/** Who holds a lock. `started` tells a process from a later one with the same id, where the system says it. */
interface Holder {
  readonly pid: number;
  readonly host: string;
  readonly started: string | null;
}

/** Held by this process: its id alone cannot tell two conversions of one process apart. */
const held = new Set<string>();

/**
 * A file that says which process is writing beside it. Of two runs that want it at once, one is refused. What a killed run
 * left behind is taken over: its process is gone.
 */
export class OutputLock {
  readonly #path: string;

  private constructor(path: string) {
    this.#path = path;
  }

  /** @throws OUTPUT_BUSY naming the file and who holds it; IO. */
  static async acquire(path: string, output: string): Promise<OutputLock> {
    if (held.has(path)) throw busy(path, output, 'this process');
    held.add(path);
    try {
      await take(path, output);
      return new OutputLock(path);
    } catch (error) {
      held.delete(path);
      throw error;
    }
  }

  /** Refuses what `acquire` would now, and takes nothing: for those with long work to do before it. */
  static async refuseHeld(path: string, output: string): Promise<void> {
    if (held.has(path)) throw busy(path, output, 'this process');
    const found = await readFile(path, 'utf8').catch(() => undefined);
    if (found !== undefined) await refuseLiving(found, path, output);
  }

  async release(): Promise<void> {
    await rm(this.#path, { force: true }).catch(() => {});
    held.delete(this.#path);
  }
}

async function take(path: string, output: string): Promise<void> {
  const mine = JSON.stringify({ pid: process.pid, host: hostname(), started: await startOf(process.pid) });
  // Each round either succeeds, meets a living holder or removes a dead one's file; many rounds mean many rivals.
  for (let round = 0; round < 10; round++) {
    if (await create(path, mine)) return sweep(path);
    const found = await readFile(path, 'utf8').catch(() => undefined);
    if (found === undefined) continue; // released meanwhile
    await refuseLiving(found, path, output);
    await removeDead(path, found);
  }
  throw busy(path, output, 'another process');
}

async function refuseLiving(found: string, path: string, output: string): Promise<void> {
  const holder = parse(found);
  if (holder === undefined) throw busy(path, output, 'another process');
  if (await mayBeAlive(holder)) throw busy(path, output, `process ${holder.pid} on ${holder.host}`);
}

/** Appears with its content or not at all: an empty lock would look like nobody's. */
async function create(path: string, content: string): Promise<boolean> {
  const draft = `${path}.${process.pid}`;
  await attempt('create', draft, () => writeFile(draft, content));
  try {
    await link(draft, path);
    return true;
  } catch (cause) {
    const code = systemCode(cause) ?? '';
    // ENOENT: who took the lock meanwhile swept the draft away.
    if (code === 'EEXIST' || code === 'ENOENT') return false;
    // File systems without hard links: creating the file is as much of a claim, if not as tidy.
    if (['EPERM', 'ENOTSUP', 'ENOSYS', 'EOPNOTSUPP'].includes(code)) return createPlainly(path, content);
    throw ioError('create', path, cause);
  } finally {
    await rm(draft, { force: true }).catch(() => {});
  }
}

/** Drafts that killed runs left. */
async function sweep(path: string): Promise<void> {
  const names = await readdir(dirname(path)).catch(() => []);
  const drafts = names.filter((name) => name.startsWith(`${basename(path)}.`));
  await Promise.all(drafts.map((name) => rm(join(dirname(path), name), { force: true }).catch(() => {})));
}

async function createPlainly(path: string, content: string): Promise<boolean> {
  try {
    await writeFile(path, content, { flag: 'wx' });
    return true;
  } catch (cause) {
    if (systemCode(cause) === 'EEXIST') return false;
    throw ioError('create', path, cause);
  }
}

/** Removes the file if it still has that content. A rival's fresh lock that was moved away by mistake goes back. */
async function removeDead(path: string, content: string): Promise<void> {
  const aside = `${path}.${process.pid}.dead`;
  try {
    await rename(path, aside);
  } catch (cause) {
    if (systemCode(cause) === 'ENOENT') return;
    throw ioError('remove', path, cause);
  }
  if ((await readFile(aside, 'utf8').catch(() => content)) !== content)
    await link(aside, path).catch(() => {});
  await rm(aside, { force: true }).catch(() => {});
}

function parse(content: string): Holder | undefined {
  try {
    const { pid, host, started } = JSON.parse(content) as Partial<Holder>;
    return typeof pid === 'number' && typeof host === 'string'
      ? { pid, host, started: started ?? null }
      : undefined;
  } catch {
    return undefined;
  }
}

/** On another machine (the folder may be a network's) nothing can be known. */
async function mayBeAlive({ pid, host, started }: Holder): Promise<boolean> {
  if (host !== hostname()) return true;
  if (pid === process.pid) return false; // `held` knows nothing of it: left by an earlier process with this id
  try {
    process.kill(pid, 0);
  } catch (cause) {
    if (systemCode(cause) === 'ESRCH') return false;
  }
  const now = await startOf(pid);
  return started === null || now === null || now === started;
}

/** When a process started, in the clock of Linux's /proc; null elsewhere. */
async function startOf(pid: number): Promise<string | null> {
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '');
  // The name in parentheses may have spaces; the start is the 20th field after it.
  return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19] ?? null;
}

function busy(path: string, output: string, who: string): MolaeError {
  return new MolaeError(
    'OUTPUT_BUSY',
    `${who} is converting to ${output}; if that is not so, remove ${path}`,
  );
}
