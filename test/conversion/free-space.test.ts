import { execFile } from 'node:child_process';
import { mkdir, statfs } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { expect, test, vi } from 'vitest';
import { type ConvertOptions, convertCheckpoint } from '../../lib/conversion/convert.ts';
import { type SpaceShortage, spaceShortage } from '../../lib/conversion/free-space.ts';
import { openDevice } from '../../lib/device.ts';
import { TINY } from '../support/fixtures.ts';
import { outputFolder } from '../support/temporary.ts';

const root = await outputFolder('free-space');

test('what is free is what the file system says', async () => {
  const { bavail, bsize } = await statfs(root);
  expect(await spaceShortage(root, 0)).toBeUndefined();
  expect(await spaceShortage(root, (bavail * bsize) / 2)).toBeUndefined();
  const shortage = await spaceShortage(root, 1e18);
  expect(shortage).toMatchObject({ folder: root, neededBytes: 1e18 });
  expect(shortage?.freeBytes).toBeLessThan(1e18);
  expect(shortage?.freeBytes).toBeGreaterThan((bavail * bsize) / 2);
});

test('nothing is said where nobody knows', async () => {
  expect(await spaceShortage(join(root, 'missing'), 1e18)).toBeUndefined();
  expect(await spaceShortage('/proc', 1e18)).toBeUndefined();
});

test('a conversion without room says so first, and goes on from where that ran out', async ({ skip }) => {
  const volume = join(root, 'volume');
  await mkdir(volume);
  const run = promisify(execFile);
  const mounted = await run('mount', ['-t', 'tmpfs', '-o', 'size=9m', 'none', volume]).catch(() => undefined);
  if (mounted === undefined) return skip('needs the right to mount');
  using device = await openDevice('cpu');
  const onSpaceShortage = vi.fn<(shortage: SpaceShortage) => void>();
  const convert = (options: Partial<ConvertOptions> = {}) =>
    convertCheckpoint(TINY, join(volume, 'out'), { targetRatio: 0.3, device, onSpaceShortage, ...options });
  try {
    await expect(convert()).rejects.toMatchObject({ code: 'IO' });
    expect(onSpaceShortage).toHaveBeenCalledOnce();
    const [{ neededBytes, freeBytes }] = onSpaceShortage.mock.lastCall as [SpaceShortage];
    expect(freeBytes).toBeLessThanOrEqual(9 << 20);
    expect(neededBytes).toBeGreaterThan(freeBytes);

    await run('mount', ['-o', 'remount,size=64m', volume]);
    const { resumedFiles, bytes } = await convert();
    expect(onSpaceShortage).toHaveBeenCalledOnce();
    expect(resumedFiles).toBeGreaterThan(0);
    expect(bytes.after).toBe(neededBytes);
  } finally {
    await run('umount', [volume]);
  }
});
