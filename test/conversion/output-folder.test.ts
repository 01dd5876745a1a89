import { execFile } from 'node:child_process';
import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import * as fs from 'node:fs/promises';
import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { openCheckpoint } from '../../lib/checkpoint/checkpoint.ts';
import { type ConvertOptions, convertCheckpoint } from '../../lib/conversion/convert.ts';
import { mountPoints, refuseMountPoint } from '../../lib/conversion/mount-point.ts';
import { OutputFolder } from '../../lib/conversion/output-folder.ts';
import { openDevice } from '../../lib/device.ts';
import { fixture } from '../support/fixtures.ts';
import { contents } from '../support/folders.ts';
import { freshPaths, outputFolder } from '../support/temporary.ts';

/** What the system does on the way to a test's output, and the renames that fail in it. */
const system = vi.hoisted(() => ({
  log: [] as string[],
  failing: (_from: string, _to: string): string | undefined => undefined,
}));

vi.mock('node:fs/promises', async (importOriginal) => {
  const real = await importOriginal<typeof fs>();
  return {
    ...real,
    async open(path: string, ...rest: [string?, number?]) {
      const handle = await real.open(path, ...rest);
      const sync = handle.sync.bind(handle);
      handle.sync = () => {
        system.log.push(`sync ${path}`);
        return sync();
      };
      return handle;
    },
    rename(from: string, to: string) {
      const code = system.failing(from, to);
      if (code) return Promise.reject(Object.assign(new Error(`${code}: made up`), { code }));
      system.log.push(`rename ${from} ${to}`);
      return real.rename(from, to);
    },
    rm(path: string, options?: object) {
      system.log.push(`rm ${path}`);
      return real.rm(path, options);
    },
  };
});

const source = fixture('families/qwen2_moe');
const device = await openDevice('cpu');
const root = await outputFolder('output-folder');
const freshPath = freshPaths(root);
let output: string;
let partial: string;
let replaced: string;

beforeEach(() => {
  output = freshPath();
  partial = join(root, `.${basename(output)}.molae-partial`);
  replaced = `${partial}-replaced`;
});
afterEach(() => {
  system.failing = () => undefined;
});
afterAll(() => device.dispose());

const convert = (options: Partial<ConvertOptions> = {}, path = output) =>
  convertCheckpoint(source, path, { groupSize: 4, latentSize: 8, device, ...options });

const hidden = async () => (await readdir(root)).filter((name) => name.startsWith('.'));

async function latentSize(path = output): Promise<number | undefined> {
  await using checkpoint = await openCheckpoint(path);
  const [layer] = checkpoint.layers.keys();
  return checkpoint.layer(layer as number).groups[0]?.latentSizes.up;
}

describe('a result that cannot take its place', () => {
  test('stays with its records, and the next run has nothing to make again', async () => {
    system.failing = (from, to) => (from !== replaced && to === output ? 'EBUSY' : undefined);
    await expect(convert()).rejects.toMatchObject({ code: 'IO', message: expect.stringContaining('EBUSY') });
    system.failing = () => undefined;
    const { resumedFiles } = await convert();
    const names = await readdir(output);
    expect(resumedFiles).toBe(names.filter((name) => name.endsWith('.safetensors')).length);
    expect(await hidden()).toEqual([]);
    const fresh = freshPath();
    await convert({}, fresh);
    expect(await contents(output)).toEqual(await contents(fresh));
  });

  test('leaves the checkpoint that it was to replace', async () => {
    await convert();
    const before = await contents(output);
    // Only once the old one is out of the way.
    const isLast = (from: string, to: string) => from !== replaced && to === output && !existsSync(output);
    system.failing = (from, to) => (isLast(from, to) ? 'EIO' : undefined);
    await expect(convert({ latentSize: 16, force: true })).rejects.toMatchObject({ code: 'IO' });
    expect(await contents(output)).toEqual(before);
    system.failing = () => undefined;
    expect((await convert({ latentSize: 16, force: true })).resumedFiles).toBeGreaterThan(0);
    expect(await latentSize()).toBe(16);
    expect(await hidden()).toEqual([]);
  });

  test('leaves what came there while it was made, and goes on when that is away', async () => {
    const thesis = join(output, 'thesis.txt');
    const late = convert({
      onProgress({ done, total }) {
        if (done < total) return;
        mkdirSync(output);
        writeFileSync(thesis, 'years of work');
      },
    });
    await expect(late).rejects.toMatchObject({
      code: 'OUTPUT_EXISTS',
      message: expect.stringContaining(`all that was made is kept in ${partial}`),
    });
    expect(await readFile(thesis, 'utf8')).toBe('years of work');
    await fs.rm(output, { recursive: true });
    expect((await convert()).resumedFiles).toBeGreaterThan(0);
  });

  test('has its other files made anew by the next run, which may want others', async () => {
    system.failing = (from, to) => (from !== replaced && to === output ? 'EIO' : undefined);
    await expect(convert({ withPython: true })).rejects.toMatchObject({ code: 'IO' });
    system.failing = () => undefined;
    expect((await convert()).resumedFiles).toBeGreaterThan(0);
    const fresh = freshPath();
    await convert({}, fresh);
    expect(await contents(output)).toEqual(await contents(fresh));
  });
});

test('a second run to an output is told of the first before any work, also where that has finished files', async () => {
  const first = await OutputFolder.open(source, output, {}, false);
  await first.finish('a', {});
  await expect(OutputFolder.check(source, output, false)).rejects.toMatchObject({ code: 'OUTPUT_BUSY' });
  await first.close();
  await OutputFolder.check(source, output, false);
  await expect(OutputFolder.refuseDiscarding(output, false)).rejects.toMatchObject({
    code: 'OUTPUT_UNFINISHED',
  });
  await OutputFolder.refuseDiscarding(output, true);
  await fs.rm(join(partial, 'molae-conversion.json')); // killed while it was removed: nothing can go on from it
  await OutputFolder.refuseDiscarding(output, false);
  await fs.rm(partial, { recursive: true });
});

describe('a run killed while it replaced a checkpoint', () => {
  test('before the new one was there: the old one is back, and replaced only when asked again', async () => {
    await convert();
    const before = await contents(output);
    await fs.rename(output, replaced);
    await expect(convert({ latentSize: 16 })).rejects.toMatchObject({ code: 'OUTPUT_EXISTS' });
    expect(await contents(output)).toEqual(before);
    await fs.rename(output, replaced);
    system.failing = (_, to) => (to === output ? 'EIO' : undefined);
    await expect(convert({ latentSize: 16, force: true })).rejects.toMatchObject({ code: 'IO' });
    expect(await contents(replaced)).toEqual(before);
    system.failing = () => undefined;
    await convert({ latentSize: 16, force: true });
    expect(await latentSize()).toBe(16);
    expect(await hidden()).toEqual([]);
  });

  test('after it was: what it left goes', async () => {
    await convert();
    await convert({ latentSize: 16 }, replaced);
    await mkdir(partial);
    await convert({ latentSize: 4, force: true });
    expect(await latentSize()).toBe(4);
    expect(await hidden()).toEqual([]);
  });
});

test('a record vouches for its file only, not for one that is made again after that was moved', async () => {
  const folder = await OutputFolder.open(source, output, {}, false);
  const file = join(folder.partial, 'a');
  await writeFile(file, 'whole');
  await folder.finish('a', { of: 'a' });
  expect(await folder.finished('a')).toEqual({ of: 'a' });
  await fs.rm(file);
  expect(await folder.finished('a')).toBeUndefined();
  await writeFile(file, 'ha');
  expect(await folder.finished('a')).toBeUndefined();
  await folder.discard();
  await folder.close();
});

test('all of a result is on the disk before it takes its place, and its place before the old one goes', async () => {
  await convert();
  system.log.length = 0;
  await convert({ latentSize: 16, force: true, withPython: true });
  const result = join(partial, 'result');
  const at = (entry: string) => {
    expect(system.log).toContain(entry);
    return system.log.lastIndexOf(entry);
  };
  const placed = at(`rename ${result} ${output}`);
  const synced = at(`sync ${result}`);
  for (const name of await readdir(output))
    expect(at(`sync ${join(result, name)}`), name).toBeLessThan(synced);
  expect(synced).toBeLessThan(placed);
  expect(placed).toBeLessThan(at(`sync ${dirname(output)}`));
  expect(at(`sync ${dirname(output)}`)).toBeLessThan(at(`rm ${replaced}`));
});

describe('a mount point as output', () => {
  test.for<[string, (at: string) => string[]]>([
    ['another file system', (at) => ['-t', 'tmpfs', 'none', at]],
    ['the same file system', (at) => ['--bind', `${at}-other`, at]],
  ])('of %s is refused before anything is done', async ([, mountArguments], { skip }) => {
    await mkdir(output);
    await mkdir(`${output}-other`);
    const run = promisify(execFile);
    const mounted = await run('mount', mountArguments(output)).catch(() => undefined);
    if (mounted === undefined) return skip('needs the right to mount');
    try {
      const onProgress = vi.fn();
      await expect(convert({ onProgress })).rejects.toMatchObject({
        code: 'INVALID_ARGUMENT',
        message: expect.stringContaining('is a mount point, which nothing can take the place of'),
      });
      expect(onProgress).not.toHaveBeenCalled();
      expect(await hidden()).toEqual([]);
      await convert({}, join(output, 'inside'));
      expect(await latentSize(join(output, 'inside'))).toBe(8);
    } finally {
      await run('umount', [output]);
    }
  });

  test('is found in the list of mounts, where spaces are octal', async () => {
    const lines = [
      '22 1 254:0 / / rw,relatime - ext4 /dev/vda rw',
      '63 43 0:39 / /my\\040models/a\\134b rw,relatime - tmpfs none rw',
      '',
    ];
    expect(mountPoints(lines.join('\n'))).toEqual(['/', '/my models/a\\b']);
    await expect(refuseMountPoint('/')).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await refuseMountPoint(root);
    await refuseMountPoint(output);
  });
});
