import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { hostname, tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { OutputLock } from '../../lib/conversion/output-lock.ts';
import { molaeError } from '../support/errors.ts';

/** What a rival does at the last moment before a lock file is moved. */
let beforeRename: (() => Promise<void>) | undefined;

vi.mock('node:fs/promises', async (original) => {
  const real = await original<typeof import('node:fs/promises')>();
  return {
    ...real,
    rename: async (from: string, to: string) => {
      const rival = beforeRename;
      beforeRename = undefined;
      await rival?.();
      return real.rename(from, to);
    },
  };
});

/** No process has this id: Linux has none above 2^22. */
const DEAD = JSON.stringify({ pid: 2 ** 30, host: hostname(), started: '1' });
/** On another machine nothing can be known, so it is taken to live. */
const ELSEWHERE = JSON.stringify({ pid: 1, host: 'another-machine', started: '1' });

let folder = '';
let path = '';
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'molae-lock-'));
  path = join(folder, 'out.lock');
});
afterEach(() => rm(folder, { recursive: true, force: true }));

const busy = (...words: string[]) => expect.objectContaining(molaeError('OUTPUT_BUSY', path, ...words));

test('what a dead process left is taken over, and nothing stays when it is released', async () => {
  await writeFile(path, DEAD);
  await writeFile(`${path}.77`, DEAD);
  const lock = await OutputLock.acquire(path, 'out');
  expect(JSON.parse(await readFile(path, 'utf8'))).toMatchObject({ pid: process.pid, host: hostname() });
  expect(await readdir(folder)).toEqual(['out.lock']);
  await lock.release();
  expect(await readdir(folder)).toEqual([]);
});

test('a lock that this process holds is refused, and free again when it is released', async () => {
  const lock = await OutputLock.acquire(path, 'out');
  await expect(OutputLock.acquire(path, 'out')).rejects.toThrow(busy('this process'));
  await expect(OutputLock.refuseHeld(path, 'out')).rejects.toThrow(busy('this process'));
  await lock.release();
  await OutputLock.refuseHeld(path, 'out');
  await (await OutputLock.acquire(path, 'out')).release();
});

test.each([
  ['of another machine', ELSEWHERE, 'process 1 on another-machine'],
  ['that cannot be read', '{"pid":', 'another process'],
])('a lock %s is refused, and stays', async (_, content, who) => {
  await writeFile(path, content);
  await expect(OutputLock.acquire(path, 'out')).rejects.toThrow(busy(who));
  expect(await readFile(path, 'utf8')).toBe(content);
});

test("a rival's fresh lock, moved away in place of the dead one that was there a moment ago, goes back", async () => {
  await writeFile(path, DEAD);
  beforeRename = () => writeFile(path, ELSEWHERE);
  await expect(OutputLock.acquire(path, 'out')).rejects.toThrow(busy('another-machine'));
  expect(await readFile(path, 'utf8')).toBe(ELSEWHERE);
  expect(await readdir(folder)).toEqual(['out.lock']);
});

test('a dead lock that a rival removes first is no failure', async () => {
  await writeFile(path, DEAD);
  beforeRename = () => rm(path);
  await (await OutputLock.acquire(path, 'out')).release();
});
