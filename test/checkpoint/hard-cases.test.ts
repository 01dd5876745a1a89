import { execFile, spawn } from 'node:child_process';
import { chmod, cp, mkdir, readdir, readFile, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterAll, beforeEach, describe, expect, onTestFinished, test, vi } from 'vitest';
import { openCheckpoint } from '../../lib/checkpoint/checkpoint.ts';
import { inspectCheckpoint } from '../../lib/checkpoint/inspect.ts';
import { SafetensorsWriter } from '../../lib/checkpoint/safetensors/writer.ts';
import { INDEX_FILE } from '../../lib/checkpoint/shards.ts';
import { type ConvertOptions, convertCheckpoint } from '../../lib/conversion/convert.ts';
import { openDevice } from '../../lib/device.ts';
import { deadline } from '../support/deadline.ts';
import { contents } from '../support/folders.ts';
import { freshPaths, outputFolder } from '../support/temporary.ts';

const here = (path: string) => fileURLToPath(new URL(path, import.meta.url));
const source = here('../fixtures/families/deepseek_v3');
const device = await openDevice('cpu');
const root = await outputFolder('hard');
const freshPath = freshPaths(root);
let output: string;

beforeEach(() => {
  output = freshPath();
});
afterAll(() => device.dispose());

const convert = (options: Partial<ConvertOptions> = {}, input = source, to = output) =>
  convertCheckpoint(input, to, { groupSize: 4, latentSize: 16, device, ...options });

const leftovers = async () => (await readdir(root)).filter((name) => name.startsWith('.'));

/** Converts in a process of its own, run by bash after `prelude`; gives its exit code and standard error. */
async function convertInProcess(prelude: string): Promise<{ code: number; stderr: string }> {
  const cli = here('../../dist/cli/main.js');
  const command = `${prelude}; exec "$0" "$@"`;
  const args = [
    cli,
    'convert',
    source,
    output,
    '--group-size',
    '4',
    '--latent-size',
    '16',
    '--device',
    'cpu',
  ];
  try {
    await promisify(execFile)('bash', ['-c', command, process.execPath, ...args]);
    return { code: 0, stderr: '' };
  } catch (error) {
    const { code, stderr } = error as { code: number; stderr: string };
    return { code, stderr };
  }
}

describe('killed at any point', () => {
  test(
    'a conversion goes on and gives the same bytes',
    async () => {
      const { stdout } = await promisify(execFile)(process.execPath, [
        here('../endurance/kill.mjs'),
        '--points',
        '6',
        '--seed',
        '3',
      ]);
      expect(JSON.parse(stdout)).toMatchObject({ points: 6, failures: [] });
    },
    deadline(120),
  );
});

test(
  'a few seconds of fuzzing find nothing that is neither read nor refused',
  async () => {
    const { stdout } = await promisify(execFile)(process.execPath, [
      here('../endurance/fuzz.mjs'),
      '--minutes',
      '0.05',
      '--seed',
      '1',
    ]);
    expect(JSON.parse(stdout).finding).toBeUndefined();
  },
  deadline(60),
);

describe('a disk that fills up', () => {
  // A limit on the size of files stands for it: writes fail with EFBIG as they would with ENOSPC.
  test.each([4, 24])(
    'after %i KB is an IO error that names file and reason; with room again, the run goes on',
    async (kilobytes) => {
      const before = await contents(source);
      const { code, stderr } = await convertInProcess(`ulimit -f ${kilobytes}`);
      expect(code).toBe(1);
      expect(stderr).toMatch(/Could not write .*EFBIG/);
      expect(stderr).not.toMatch(/kept/); // nothing was finished
      expect(await stat(output).catch(() => undefined)).toBeUndefined();
      expect(await contents(source)).toEqual(before);
      await convert();
      const resumed = await contents(output);
      await rm(output, { recursive: true });
      await convert();
      expect(await contents(output)).toEqual(resumed);
    },
  );

  test('for real, where a small one can be mounted: what was finished is kept', async ({ skip }) => {
    const disk = join(root, 'disk');
    await mkdir(disk);
    const run = promisify(execFile);
    const mounted = await run('mount', ['-t', 'tmpfs', '-o', 'size=96k', 'tmpfs', disk]).catch(
      () => undefined,
    );
    if (mounted === undefined) return skip('needs the right to mount a tmpfs');
    try {
      const full = convert({}, source, join(disk, 'out'));
      await expect(full).rejects.toMatchObject({ code: 'IO', message: expect.stringContaining('ENOSPC') });
      await run('mount', ['-o', 'remount,size=4m', disk]);
      const report = await convert({}, source, join(disk, 'out'));
      expect(report.resumedFiles).toBeGreaterThan(0);
      await convert();
      expect(await contents(join(disk, 'out'))).toEqual(await contents(output));
      expect(await readdir(disk)).toEqual(['out']);
    } finally {
      await run('umount', [disk]);
    }
  });
});

describe('two runs to one output', () => {
  test('at once: the second is refused while the first runs, and neither harms the other', async () => {
    let second: Promise<unknown> | undefined;
    await convert({
      onProgress: () => {
        second ??= expect(convert({ latentSize: 8 })).rejects.toMatchObject({
          code: 'OUTPUT_BUSY',
          message: expect.stringContaining('this process'),
        });
      },
    });
    await second;
    await using converted = await openCheckpoint(output);
    expect(converted.layer(1).groups[0]?.latentSizes.gate).toBe(16);
    expect(await leftovers()).toEqual([]);
  });

  test('in two processes: the second is refused by name of the first', async () => {
    const lock = join(root, `.${output.split('/').pop()}.molae-lock`);
    const sleeper = spawn('sleep', ['60']);
    await writeFile(lock, JSON.stringify({ pid: sleeper.pid, host: hostname(), started: null }));
    await expect(convert()).rejects.toMatchObject({
      code: 'OUTPUT_BUSY',
      message: expect.stringContaining(`process ${sleeper.pid}`),
    });
    sleeper.kill();
    await new Promise((resolve) => sleeper.on('exit', resolve));
    await convert();
    expect(await leftovers()).toEqual([]);
  });

  test('in processes of two users: the second is refused though it may send the first no signal', async () => {
    const lock = join(root, `.${output.split('/').pop()}.molae-lock`);
    await writeFile(lock, JSON.stringify({ pid: process.ppid, host: hostname(), started: null }));
    const kill = vi.spyOn(process, 'kill').mockImplementation(() => {
      throw Object.assign(new Error('kill EPERM'), { code: 'EPERM' });
    });
    onTestFinished(() => kill.mockRestore());
    await expect(convert()).rejects.toMatchObject({
      code: 'OUTPUT_BUSY',
      message: expect.stringContaining(`process ${process.ppid}`),
    });
    expect(kill).toHaveBeenCalledWith(process.ppid, 0);
    await rm(lock);
  });

  test.each<[string, object | string]>([
    ['of a process that came later with the same id', { pid: process.ppid, host: hostname(), started: '1' }],
    ['of an earlier process with this id', { pid: process.pid, host: hostname(), started: '1' }],
  ])('a lock %s is taken over', async (_, content) => {
    await writeFile(join(root, `.${output.split('/').pop()}.molae-lock`), JSON.stringify(content));
    await convert();
    expect(await leftovers()).toEqual([]);
  });

  test.each<[string, string]>([
    ['of another machine', JSON.stringify({ pid: 1, host: 'elsewhere', started: null })],
    ['that says nothing', ''],
  ])('a lock %s is left to the user', async (_, content) => {
    const lock = join(root, `.${output.split('/').pop()}.molae-lock`);
    await writeFile(lock, content);
    await expect(convert()).rejects.toMatchObject({
      code: 'OUTPUT_BUSY',
      message: expect.stringContaining(`remove ${lock}`),
    });
    await rm(lock);
  });
});

describe('sources', () => {
  test('on read-only storage convert, and stay as they are', async () => {
    const copy = join(root, 'read-only');
    await cp(source, copy, { recursive: true });
    for (const name of await readdir(copy)) await chmod(join(copy, name), 0o444);
    await chmod(copy, 0o555);
    const before = await contents(copy);
    await convert({}, copy);
    expect(await contents(copy)).toEqual(before);
    // Written by us, they can be written by us again.
    for (const name of await readdir(output))
      expect((await stat(join(output, name))).mode & 0o200, name).toBe(0o200);
    await chmod(copy, 0o755);
  });

  test(
    'of hundreds of shards and thousands of tensors open, convert and resume like one file',
    async () => {
      const [layers, experts, n, m] = [10, 64, 8, 4];
      const folder = join(root, 'many');
      await mkdir(folder);
      const config = {
        model_type: 'olmoe',
        hidden_size: n,
        intermediate_size: m,
        num_experts: experts,
        num_experts_per_tok: 2,
        num_hidden_layers: layers,
        hidden_act: 'silu',
      };
      await writeFile(join(folder, 'config.json'), JSON.stringify(config));
      const names = Array.from({ length: layers }, (_, layer) => `model.layers.${layer}.mlp`).flatMap(
        (prefix) => [
          { name: `${prefix}.gate.weight`, shape: [experts, n] },
          ...Array.from({ length: experts }, (_, e) =>
            ['gate', 'up', 'down'].map((operator) => ({
              name: `${prefix}.experts.${e}.${operator}_proj.weight`,
              shape: operator === 'down' ? [n, m] : [m, n],
            })),
          ).flat(),
        ],
      );
      // Scattered, so that every group draws on many files.
      const shards = 400;
      const weightMap: Record<string, string> = {};
      for (let s = 0; s < shards; s++) {
        const file = `model-${String(s + 1).padStart(5, '0')}-of-00400.safetensors`;
        const own = names
          .filter((_, i) => (i * 7) % shards === s)
          .map((tensor) => ({ ...tensor, dtype: 'F32' as const }));
        const writer = await SafetensorsWriter.create(join(folder, file), own);
        for (const { name, shape } of own) {
          const values = new Float32Array((shape[0] as number) * (shape[1] as number));
          await writer.write(
            name,
            new Uint8Array(values.map((_, i) => Math.sin(i * 13 + name.length * 7 + s)).buffer),
          );
          weightMap[name] = file;
        }
        await writer.finish();
      }
      await writeFile(join(folder, INDEX_FILE), JSON.stringify({ weight_map: weightMap }));
      expect(names.length).toBe(1930);
      const inspection = await inspectCheckpoint(folder);
      expect(inspection).toMatchObject({ supported: true, tensors: 1930, files: 400 });
      const controller = new AbortController();
      const stopped = convert(
        {
          groupSize: 16,
          latentSize: 8,
          signal: controller.signal,
          onProgress: ({ layer }) => layer === 4 && controller.abort(),
        },
        folder,
      );
      await expect(stopped).rejects.toMatchObject({ code: 'ABORTED' });
      const report = await convert({ groupSize: 16, latentSize: 8 }, folder);
      expect(report.resumedFiles).toBe(5);
      expect(report.layers).toHaveLength(layers * 4 * 3);
      expect(report.layers.every((row) => row.exact && row.relativeError < 1e-5)).toBe(true);
    },
    deadline(120),
  );

  test('with tensors that the index leaves out convert without them; inspect warns', async () => {
    const folder = join(root, 'leftovers');
    await mkdir(folder);
    await cp(join(source, 'config.json'), join(folder, 'config.json'));
    await using original = await openCheckpoint(source);
    const names = [...original.shards.tensors.keys()];
    const shard = 'model-00001-of-00001.safetensors';
    const stale = {
      name: 'model.layers.1.mlp.experts.8.up_proj.weight',
      dtype: 'BF16',
      shape: [12, 32],
    } as const;
    const writer = await SafetensorsWriter.create(join(folder, shard), [
      ...names.map((name) => ({ name, ...original.shards.tensor(name) })),
      stale,
    ]);
    for (const name of names) await writer.write(name, await original.shards.read(name));
    await writer.write(stale.name, new Uint8Array(2 * 12 * 32));
    await writer.finish();
    const weightMap = Object.fromEntries(names.map((name) => [name, shard]));
    await writeFile(join(folder, INDEX_FILE), JSON.stringify({ weight_map: weightMap }));
    const inspection = await inspectCheckpoint(folder);
    expect(inspection).toMatchObject({ supported: true, tensors: names.length });
    expect(inspection.warnings).toEqual([
      `${shard} holds "${stale.name}", which the index does not place there: ignored`,
    ]);
    await convert({}, folder);
    await convert({}, source, `${output}-plain`);
    const { 'config.json': _, ...files } = await contents(output);
    expect(files).toEqual((({ 'config.json': __, ...rest }) => rest)(await contents(`${output}-plain`)));
  });

  test('keep in their config every number as it is written, `0.0` and all', async () => {
    const folder = join(root, 'floats');
    await cp(source, folder, { recursive: true });
    const text = await readFile(join(source, 'config.json'), 'utf8');
    const odd = text.replace(
      '{',
      '{ "odd" : [0.0, 1E5 , {"a":-0.0, "b": "x,\\"}"}],"big":12345678901234567890,',
    );
    await writeFile(join(folder, 'config.json'), odd);
    await convert({ format: 'dense' }, folder);
    const dense = await readFile(join(output, 'config.json'), 'utf8');
    expect(dense).toContain('"odd": [0.0, 1E5 , {"a":-0.0, "b": "x,\\"}"}]');
    expect(dense).toContain('"big": 12345678901234567890');
    expect(JSON.parse(dense)).toEqual(JSON.parse(odd));
    await convert({}, folder, `${output}-latent`);
    const latent = await readFile(join(`${output}-latent`, 'config.json'), 'utf8');
    expect(latent).toContain('"routed_scaling_factor": 2.5');
    expect(latent).toContain('"attention_dropout": 0.0');
    expect(JSON.parse(latent)).toMatchObject({ model_type: 'molae', base_model_type: 'deepseek_v3' });
  });

  test('may be a link to a folder; the output may not be a link to the source', async () => {
    const link = join(root, 'link');
    await symlink(source, link);
    await convert({}, link);
    const other = join(root, 'other-link');
    await symlink(source, other);
    await expect(convert({ force: true }, link, other)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    const dangling = join(root, 'dangling');
    await symlink(join(root, 'nowhere'), dangling);
    await expect(convert({}, source, dangling)).rejects.toMatchObject({
      code: 'OUTPUT_EXISTS',
      message: expect.stringContaining('exists and is a link'),
    });
  });

  test('that change while they are read give an error that names the file', async () => {
    const copy = join(root, 'changing');
    await cp(source, copy, { recursive: true });
    await using checkpoint = await openCheckpoint(copy);
    const [file] = checkpoint.shards.files;
    const bytes = await readFile(join(copy, file as string));
    await writeFile(join(copy, file as string), bytes.subarray(0, bytes.length / 2));
    await expect(checkpoint.loadExperts(2, { device })).rejects.toMatchObject({
      code: 'BAD_CHECKPOINT',
      message: expect.stringContaining(file as string),
    });
  });
});
