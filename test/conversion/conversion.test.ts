import { spawn } from 'node:child_process';
import { cp, mkdir, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeEach, describe, expect, test } from 'vitest';
import { openCheckpoint } from '../../lib/checkpoint/checkpoint.ts';
import { type ConvertOptions, convertCheckpoint } from '../../lib/conversion/convert.ts';
import { openDevice } from '../../lib/device.ts';
import type { DenseExperts, LatentExperts, LatentOperator } from '../../lib/experts.ts';
import { factorizeExperts } from '../../lib/factorization/factorize.ts';
import { OPERATORS } from '../../lib/operators.ts';
import { copyWithConfig } from '../support/changed-config.ts';
import { copyDamaged } from '../support/damaged.ts';
import { TINY } from '../support/fixtures.ts';
import { contents, digest } from '../support/folders.ts';
import { freshPaths, outputFolder } from '../support/temporary.ts';

const source = TINY;
const device = await openDevice('cpu');
const root = await outputFolder('conversion');
const freshPath = freshPaths(root);
let output: string;

beforeEach(() => {
  output = freshPath();
});
afterAll(() => device.dispose());

const convert = (options: Partial<ConvertOptions> = {}, input = source) =>
  convertCheckpoint(input, output, { groupSize: 4, latentSize: 48, device, ...options });

async function exists(path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    () => false,
  );
}

describe('a converted checkpoint', () => {
  test('opens again with the factors that factorizing the loaded layers gives, bit by bit', async () => {
    const report = await convert();
    await using original = await openCheckpoint(source);
    await using converted = await openCheckpoint(output);
    expect(converted.format).toBe('latent');
    expect(report.layers).toHaveLength(4 * 4 * 3);
    for (const layer of [0, 3]) {
      using dense = (await original.loadExperts(layer, { device })) as DenseExperts;
      using wanted = await factorizeExperts(dense, { groupSize: 4, latentSize: 48 });
      using got = (await converted.loadExperts(layer, { device })) as LatentExperts;
      for (const operator of OPERATORS) {
        for (const side of ['a', 'b'] as const) {
          for (const [g, tensor] of (wanted[operator] as LatentOperator)[side].entries()) {
            const loaded = (got[operator] as LatentOperator)[side][g];
            expect(loaded?.dtype).toBe('bf16');
            expect(digest((await loaded?.read()) as NodeJS.TypedArray)).toBe(digest(await tensor.read()));
          }
        }
      }
      expect(report.layers.filter((row) => row.layer === layer).map(({ layer: _, ...row }) => row)).toEqual(
        [...wanted.report].sort((a, b) => a.group - b.group),
      );
    }
  });

  test('keeps router, shared experts, attention and side files byte for byte, and says in config.json what it is', async () => {
    await convert();
    await using original = await openCheckpoint(source);
    await using converted = await openCheckpoint(output);
    for (const name of original.shards.tensors.keys()) {
      const isExpert = name.includes('.experts.');
      expect(converted.shards.tensors.has(name), name).toBe(!isExpert);
      if (!isExpert)
        expect(digest(await converted.shards.read(name))).toBe(digest(await original.shards.read(name)));
    }
    for (const file of ['tokenizer.json', 'tokenizer_config.json']) {
      expect(digest(await readFile(join(output, file)))).toBe(digest(await readFile(join(source, file))));
    }
    const config = JSON.parse(await readFile(join(output, 'config.json'), 'utf8'));
    expect(config).toMatchObject({
      model_type: 'molae',
      base_model_type: 'qwen2_moe',
      hidden_size: 256,
      molae: { version: 1, method: 'stacked-svd', operators: ['gate', 'up', 'down'] },
    });
    expect(config.molae.groups['3']).toEqual([
      [0, 1, 2, 3],
      [4, 5, 6, 7],
      [8, 9, 10, 11],
      [12, 13, 14, 15],
    ]);
    expect((await readdir(root)).filter((name) => name.includes('partial'))).toEqual([]);
  });

  test('has the modules for transformers beside it where they were asked for', async () => {
    await convert({ withPython: true });
    for (const name of ['configuration_molae.py', 'modeling_molae.py']) {
      const own = fileURLToPath(new URL(`../../python/${name}`, import.meta.url));
      expect(digest(await readFile(join(output, name))), name).toBe(digest(await readFile(own)));
    }
    const { auto_map } = JSON.parse(await readFile(join(output, 'config.json'), 'utf8'));
    expect(auto_map).toMatchObject({ AutoConfig: 'configuration_molae.MolaeConfig' });
  });

  test('has the code that the source brings for transformers: its tokenizer may be in it, and dense experts need the rest', async () => {
    const copy = `${output}-source`;
    await cp(source, copy, { recursive: true });
    const config = JSON.parse(await readFile(join(copy, 'config.json'), 'utf8'));
    const auto_map = { AutoConfig: 'configuration_own.OwnConfig' };
    await writeFile(join(copy, 'config.json'), JSON.stringify({ ...config, auto_map }));
    const code = ['configuration_own.py', 'tokenization_own.py', 'tiktoken.model'];
    for (const name of code) await writeFile(join(copy, name), `of ${name}`);
    for (const [format, kept] of [
      ['latent', undefined],
      ['dense', auto_map],
    ] as const) {
      await convert({ format, force: true }, copy);
      for (const name of code) expect(await readFile(join(output, name), 'utf8')).toBe(`of ${name}`);
      // The source's classes know nothing of latent experts.
      expect(JSON.parse(await readFile(join(output, 'config.json'), 'utf8')).auto_map).toEqual(kept);
    }
  });

  test('the report counts what the files have', async () => {
    const report = await convert({ operators: ['up', 'down'] });
    await using original = await openCheckpoint(source);
    await using converted = await openCheckpoint(output);
    expect(report.expertParameters).toEqual({
      before: original.expertParameters,
      after: converted.expertParameters,
    });
    expect(report.parameters).toEqual({ before: original.parameters, after: converted.parameters });
    expect(report.bytes).toEqual({ before: original.byteLength, after: converted.byteLength });
    expect(converted.layer(2).latentOperators).toEqual(['up', 'down']);
  });

  test.each([0.2, 0.5])(
    'targetRatio %f removes at least that share, and the planner says which k it took',
    async (targetRatio) => {
      const report = await convertCheckpoint(source, output, { targetRatio, device });
      const { before, after } = report.expertParameters;
      expect(1 - after / before).toBeGreaterThanOrEqual(targetRatio);
      expect(1 - after / before).toBeLessThan(targetRatio + 0.1);
      expect(report.reason).toContain(String(report.groupSize));
    },
  );

  test('shared gate/up stores one B, and loads with one z', async () => {
    await convert({ sharedGateUp: true });
    await using converted = await openCheckpoint(output);
    expect(converted.shards.tensors.has('model.layers.0.mlp.latent_experts.0.gate_up_b')).toBe(true);
    expect(converted.shards.tensors.has('model.layers.0.mlp.latent_experts.0.gate_b')).toBe(false);
    using experts = (await converted.loadExperts(0, { device })) as LatentExperts;
    expect((experts.gate as LatentOperator).b).toEqual((experts.up as LatentOperator).b);
  });

  test('explicit groups and latent sizes of their own are kept', async () => {
    const groups = [
      [15, 0, 7],
      [1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14],
    ];
    await convertCheckpoint(source, output, { groups, latentSize: { gate: 16, up: 32, down: 48 }, device });
    await using converted = await openCheckpoint(output);
    expect(converted.layer(1).groups).toEqual(
      groups.map((experts) => ({
        experts,
        latentSizes: { gate: 16, up: 32, down: 48 },
        sharedGateUp: false,
      })),
    );
  });
});

describe('the dense format', () => {
  test("has the source's names, shapes, dtypes and config, reloads, and holds the products A·B", async () => {
    await convert({ format: 'dense' });
    const dense = output;
    output = `${output}-latent`;
    await convert();
    await using original = await openCheckpoint(source);
    await using products = await openCheckpoint(dense);
    await using factors = await openCheckpoint(output);
    const describeAll = (c: typeof original) =>
      [...c.shards.tensors].map(([name, { dtype, shape }]) => `${name} ${dtype} ${shape}`).sort();
    expect(describeAll(products)).toEqual(describeAll(original));
    expect(JSON.parse(await readFile(join(dense, 'config.json'), 'utf8'))).toEqual(original.config);
    // Both formats are one layer: the forward passes differ by the rounding of the products only.
    const x = device.tensor(
      'f32',
      Float32Array.from({ length: 64 * 256 }, (_, i) => Math.sin(i * 12.9898) * 2),
      [64, 256],
    );
    using a = await products.loadMoeBlock(1, { device });
    using b = await factors.loadMoeBlock(1, { device });
    using plain = await original.loadMoeBlock(1, { device });
    const [ya, yb, y] = [
      await (await a.forward(x)).toFloat32(),
      await (await b.forward(x)).toFloat32(),
      await (await plain.forward(x)).toFloat32(),
    ];
    const distance = (u: Float32Array, v: Float32Array) =>
      Math.sqrt(u.reduce((sum, value, i) => sum + (value - (v[i] as number)) ** 2, 0));
    expect(distance(ya, yb) / distance(y, new Float32Array(y.length))).toBeLessThan(1e-2);
    expect(distance(ya, y)).toBeGreaterThan(10 * distance(ya, yb));
  });
});

describe('a run that stops', () => {
  test('leaves no output when aborted; run again, it goes on and gives the same bytes as an undisturbed run', async () => {
    const controller = new AbortController();
    const call = convert({
      signal: controller.signal,
      onProgress: ({ layer, done }) => layer === 2 && done % 8 === 0 && controller.abort(),
    });
    await expect(call).rejects.toMatchObject({ code: 'ABORTED' });
    expect(await exists(output)).toBe(false);
    const resumed = await convert();
    expect(resumed.resumedFiles).toBeGreaterThanOrEqual(3);
    const after = await contents(output);
    await rm(output, { recursive: true });
    const fresh = await convert();
    expect(fresh.resumedFiles).toBe(0);
    expect(await contents(output)).toEqual(after);
    expect(resumed.layers).toEqual(fresh.layers);
  });

  test('is not resumed by a run with other options, which throws away what it had finished with force only', async () => {
    const controller = new AbortController();
    await expect(
      convert({ signal: controller.signal, onProgress: ({ layer }) => layer === 1 && controller.abort() }),
    ).rejects.toMatchObject({ code: 'ABORTED' });
    await expect(convert({ latentSize: 32 })).rejects.toMatchObject({
      code: 'OUTPUT_UNFINISHED',
      message: expect.stringMatching(/other options, left finished files in .*molae-partial \(\d+\)/),
    });
    expect((await convert({ latentSize: 32, force: true })).resumedFiles).toBe(0);
  });

  test('is not resumed by a run with other groups of the same sizes', async () => {
    const grouped = (first: number, signal?: AbortSignal) =>
      convertCheckpoint(source, output, {
        groups: [0, 1].map((g) => Array.from({ length: 8 }, (_, i) => (first + 8 * g + i) % 16)),
        ...{ latentSize: 48, device, signal, force: signal === undefined },
        ...(signal && { onProgress: ({ layer }) => layer === 2 && controller.abort() }),
      });
    const controller = new AbortController();
    await expect(grouped(0, controller.signal)).rejects.toMatchObject({ code: 'ABORTED' });
    expect((await grouped(4)).resumedFiles).toBe(0);
    await using converted = await openCheckpoint(output);
    expect(converted.layer(0).groups[0]?.experts).toEqual([4, 5, 6, 7, 8, 9, 10, 11]);
  });

  test('is not resumed once the config of its source says something else', async () => {
    const copy = freshPath();
    await copyWithConfig(source, copy, {});
    const controller = new AbortController();
    const stopped = convert(
      { signal: controller.signal, onProgress: ({ layer }) => layer === 2 && controller.abort() },
      copy,
    );
    await expect(stopped).rejects.toMatchObject({ code: 'ABORTED' });
    const path = join(copy, 'config.json');
    const config = JSON.parse(await readFile(path, 'utf8'));
    await writeFile(path, JSON.stringify({ ...config, rope_theta: 2 * config.rope_theta }));
    await expect(convert({}, copy)).rejects.toMatchObject({ code: 'OUTPUT_UNFINISHED' });
    expect((await convert({ force: true }, copy)).resumedFiles).toBe(0);
  });

  test('killed outright, it leaves no output and the next run completes', async () => {
    const script = `
      import { convertCheckpoint } from ${JSON.stringify(fileURLToPath(new URL('../../dist/index.js', import.meta.url)))};
      await convertCheckpoint(${JSON.stringify(source)}, ${JSON.stringify(output)}, {
        groupSize: 4, latentSize: 48, onProgress: ({ layer }) => layer === 2 && process.kill(process.pid, 'SIGKILL'),
      });`;
    const child = spawn(process.execPath, ['--input-type=module', '-e', script], { stdio: 'inherit' });
    const signal = await new Promise((resolve) => child.on('exit', (_, name) => resolve(name)));
    expect(signal).toBe('SIGKILL');
    expect(await exists(output)).toBe(false);
    expect((await convert()).resumedFiles).toBeGreaterThanOrEqual(1);
    await using converted = await openCheckpoint(output);
    expect(converted.format).toBe('latent');
  });
});

describe('an output that is in the way', () => {
  test('is OUTPUT_EXISTS and untouched; force replaces it', async () => {
    await convert();
    const before = await contents(output);
    await expect(convert({ latentSize: 16 })).rejects.toMatchObject({ code: 'OUTPUT_EXISTS' });
    expect(await contents(output)).toEqual(before);
    await convert({ latentSize: 16, force: true });
    await using converted = await openCheckpoint(output);
    expect(converted.layer(0).groups[0]?.latentSizes.up).toBe(16);
    expect((await readdir(root)).filter((name) => name.startsWith('.'))).toEqual([]);
  });

  test('with something else in its folder is never replaced, even with force', async () => {
    await convert();
    for (const [name, make] of [
      ['other', (path: string) => mkdir(path)],
      ['README.md', (path: string) => writeFile(path, 'mine')],
    ] as const) {
      const path = join(output, name);
      await make(path);
      await expect(convert({ latentSize: 16, force: true })).rejects.toMatchObject({
        code: 'OUTPUT_EXISTS',
        message: expect.stringContaining(`has ${name} in it`),
      });
      expect(await exists(path)).toBe(true);
      await rm(path, { recursive: true });
    }
    await convert({ latentSize: 16, force: true });
  });

  test('that is not a checkpoint is never replaced, even with force', async () => {
    await mkdir(output);
    await writeFile(join(output, 'thesis.txt'), 'years of work');
    await expect(convert({ force: true })).rejects.toThrow(/no checkpoint: it will not be replaced/);
    expect(await readFile(join(output, 'thesis.txt'), 'utf8')).toBe('years of work');
  });

  test('the source itself, a folder in it or around it is refused', async () => {
    for (const path of [source, join(source, 'out'), join(source, '..')]) {
      await expect(
        convertCheckpoint(source, path, { groupSize: 4, latentSize: 8, force: true, device }),
      ).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    }
  });
});

describe('bad input', () => {
  test.each([
    ['NaN', 0x7fc0],
    ['infinity', 0xff80],
  ])('%s in a weight names tensor and position, and leaves nothing behind', async (_, bits) => {
    const name = 'model.layers.1.mlp.experts.6.up_proj.weight';
    const copy = `${output}-source`;
    await copyDamaged(source, copy, name, 3 * 256 + 7, bits);
    const call = convert({}, copy);
    await expect(call).rejects.toMatchObject({ code: 'NON_FINITE' });
    await expect(call).rejects.toThrow(`Tensor ${name} has NaN or infinity at [3, 7]`);
    expect(await exists(output)).toBe(false);
    expect((await readdir(root)).filter((entry) => entry.startsWith('.'))).toEqual([]);
  });

  test.each<[string, Partial<ConvertOptions>, RegExp]>([
    ['k that does not divide N', { groupSize: 5 }, /a divisor of the 16 experts \(1, 2, 4, 8, 16\)/],
    ['r out of range', { latentSize: 257 }, /from 1 to 256 .* received 257/],
    ['both latentSize and targetRatio', { targetRatio: 0.5 }, /either latentSize or targetRatio/],
    ['neither latentSize nor targetRatio', { latentSize: undefined }, /either latentSize or targetRatio/],
    ['an unknown format', { format: 'gguf' as 'dense' }, /latent or dense for format/],
    ['a signal that is none', { signal: 5 as never }, /an AbortSignal for signal/],
    ['a device by its name', { device: 'cpu' as never }, /a device of openDevice\(\) for device/],
    ['a callback that is none', { onProgress: 5 as never }, /a function for onProgress/],
    ['another callback that is none', { onSpaceShortage: 5 as never }, /a function for onSpaceShortage/],
  ])('%s is refused before anything is written', async (_, options, message) => {
    const call = convert(options);
    await expect(call).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(call).rejects.toThrow(message);
    expect((await readdir(root)).filter((name) => name.startsWith('.'))).toEqual([]);
  });

  test('a converted checkpoint is not converted again', async () => {
    await convert();
    const call = convertCheckpoint(output, `${output}-again`, { groupSize: 4, latentSize: 8, device });
    await expect(call).rejects.toMatchObject({
      code: 'UNSUPPORTED_CHECKPOINT',
      message: expect.stringContaining('was converted already: take the checkpoint it came from'),
    });
  });

  test('an output that cannot be created is an IO error; the source is untouched', async () => {
    const before = await contents(source);
    await expect(
      convertCheckpoint(source, '/proc/molae-out', { groupSize: 4, latentSize: 8, device }),
    ).rejects.toMatchObject({ code: 'IO' });
    expect(await contents(source)).toEqual(before);
  });
});
