import { cp, mkdir, readdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeEach, describe, expect, test } from 'vitest';
import { openCheckpoint } from '../../lib/checkpoint/checkpoint.ts';
import { inspectCheckpoint } from '../../lib/checkpoint/inspect.ts';
import { SafetensorsWriter } from '../../lib/checkpoint/safetensors/writer.ts';
import { convertCalibrated } from '../../lib/conversion/calibrated/convert.ts';
import type { GroupUseReport } from '../../lib/conversion/calibrated/group-use.ts';
import type { CalibratedConversionOptions } from '../../lib/conversion/calibrated/options.ts';
import { openDevice } from '../../lib/device.ts';
import { searchCalibrated } from '../../lib/methods/calibrated/search.ts';
import { calibrate } from '../../lib/model/calibration.ts';
import { Model } from '../../lib/model/model.ts';
import { perplexity } from '../../lib/model/perplexity.ts';
import { Tokenizer } from '../../lib/model/tokenizer.ts';
import { OPERATORS } from '../../lib/operators.ts';
import { stopAndGoOn } from '../methods/support.ts';
import { fixture, TINY } from '../support/fixtures.ts';
import { contents } from '../support/folders.ts';
import { Random } from '../support/random.ts';
import { multiply, relativeError } from '../support/reference.ts';
import { freshPaths, outputFolder } from '../support/temporary.ts';

const source = TINY;
const device = await openDevice('cpu');
const tokenizer = await Tokenizer.open(source);
const ids = tokenizer.encode(await readFile(fixture('moby-dick.txt'), 'utf8'));
const calibration = ids.slice(0, 1280);
/** Of which a search can hold out enough windows. */
const longer = ids.slice(0, 2560);
const root = await outputFolder('grouped');
const freshPath = freshPaths(root);
const [n, m, experts, topK] = [256, 96, 16, 4];
let output: string;

beforeEach(() => {
  output = freshPath();
});
afterAll(() => device.dispose());

const AFFINITY = { grouping: 'affinity' } as const;
const TOGETHER = { grouping: 'affinity', coActivation: 1 } as const;

const convert = (options: Partial<CalibratedConversionOptions> = {}, input = source) =>
  convertCalibrated(input, output, { calibration, groupSize: 4, targetRatio: 0.5, device, ...options });

async function partitionsOf(path: string): Promise<number[][][]> {
  await using checkpoint = await openCheckpoint(path);
  return [...checkpoint.layers.values()].map(({ groups }) => groups.map((group) => [...group.experts]));
}

const RANK = 32;

/** Pairs of experts that lie far apart, other ones in each layer: a random order, cut in two. */
function plantedPairs(layer: number): number[][] {
  const random = new Random(100 + layer);
  const order = Array.from({ length: experts }, (_, i) => i);
  for (let i = experts - 1; i > 0; i--) {
    const j = random.integer(i + 1);
    [order[i], order[j]] = [order[j] as number, order[i] as number];
  }
  return Array.from({ length: experts / 2 }, (_, g) =>
    [order[2 * g] as number, order[2 * g + 1] as number].sort((a, b) => a - b),
  ).sort((a, b) => (a[0] as number) - (b[0] as number));
}

/** The test model with experts of which each pair shares spaces of `RANK` dimensions exactly, in f32. */
async function plantedModel(): Promise<string> {
  const folder = freshPath();
  await mkdir(folder);
  for (const name of await readdir(source))
    if (!/safetensors/.test(name)) await cp(join(source, name), join(folder, name));
  await using original = await openCheckpoint(source);
  const planted = new Map<string, Float32Array>();
  for (const layer of original.spec.layers) {
    const random = new Random(layer);
    for (const pair of plantedPairs(layer)) {
      for (const operator of OPERATORS) {
        const b = operator === 'down' ? random.matrix(n, RANK, 0.1) : random.matrix(RANK, n, 0.1);
        for (const expert of pair) {
          const a = operator === 'down' ? random.matrix(RANK, m, 0.1) : random.matrix(m, RANK, 0.1);
          const w = operator === 'down' ? multiply(b, a) : multiply(a, b);
          planted.set(
            `model.layers.${layer}.mlp.experts.${expert}.${operator}_proj.weight`,
            Float32Array.from(w.data),
          );
        }
      }
    }
  }
  const { shards } = original;
  const tensors = [...shards.tensors].map(([name, { dtype, shape }]) => {
    return { name, dtype: planted.has(name) ? ('F32' as const) : dtype, shape };
  });
  const writer = await SafetensorsWriter.create(join(folder, 'model.safetensors'), tensors);
  for (const { name } of tensors) {
    const own = planted.get(name);
    await writer.write(name, own ? new Uint8Array(own.buffer) : await shards.read(name));
  }
  await writer.finish();
  return folder;
}

describe('experts that share spaces in pairs which lie far apart', () => {
  const planted = plantedModel();

  test('are found by affinity and reconstructed; consecutive groups lose much, co-activation finds others', async () => {
    const input = await planted;
    const wanted = [0, 1, 2, 3].map(plantedPairs);
    const uniform = { groupSize: 2, latentSize: RANK, targetRatio: undefined };
    const worst = async (options: Partial<CalibratedConversionOptions>) => {
      output = freshPath();
      const { layers } = await convert({ ...uniform, ...options }, input);
      return Math.max(...layers.map(({ relativeError }) => relativeError));
    };
    expect(await worst(AFFINITY)).toBeLessThan(1e-3);
    expect(await partitionsOf(output)).toEqual(wanted);
    const found = output;
    expect(await worst({})).toBeGreaterThan(0.1);
    expect(await worst(TOGETHER)).toBeGreaterThan(0.1);
    expect(await partitionsOf(output)).not.toEqual(wanted);
    const perplexityOf = async (path: string) => {
      await using model = await Model.open(path, { device });
      return (await perplexity(model, ids.slice(2560))).perplexity;
    };
    expect(Math.abs((await perplexityOf(found)) / (await perplexityOf(input)) - 1)).toBeLessThan(1e-4);
  });

  test('reopened, latent and dense, put out what the original does, and not so with consecutive groups', async () => {
    const input = await planted;
    const options = { ...AFFINITY, groupSize: 2, latentSize: RANK, targetRatio: undefined };
    await convert(options, input);
    const latent = output;
    output = freshPath();
    await convert({ ...options, grouping: 'consecutive' }, input);
    const consecutive = output;
    output = freshPath();
    await convert({ ...options, format: 'dense' }, input);
    using x = device.tensor(
      'f32',
      Float32Array.from({ length: 64 * n }, (_, i) => Math.sin(i * 12.9898) * 2),
      [64, n],
    );
    const outputOf = async (path: string, layer: number) => {
      await using checkpoint = await openCheckpoint(path);
      using block = await checkpoint.loadMoeBlock(layer, { device });
      using y = await block.forward(x);
      return y.toFloat32();
    };
    for (const layer of [0, 3]) {
      const wanted = await outputOf(input, layer);
      expect(relativeError(await outputOf(latent, layer), wanted)).toBeLessThan(1e-3);
      expect(relativeError(await outputOf(output, layer), wanted)).toBeLessThan(1e-3);
      expect(relativeError(await outputOf(consecutive, layer), wanted)).toBeGreaterThan(1e-2);
    }
  });
});

describe('groups by affinity', () => {
  test('differ by layer, are recorded and found again; consecutive ones are as they were', async () => {
    const report = await convert({ ...AFFINITY, coActivation: 0.5 });
    expect(report.reason).toMatch(/fire together \(co-activation 0.5\)/);
    const { molae } = JSON.parse(await readFile(join(output, 'config.json'), 'utf8'));
    expect(molae.provenance).toMatchObject({ grouping: 'affinity', coActivation: 0.5 });
    const partitions = await partitionsOf(output);
    expect(Object.values(molae.groups)).toEqual(partitions);
    expect(new Set(partitions.map(String)).size).toBe(4);
    expect((await inspectCheckpoint(output)).latent).toMatchObject({
      groupSizes: [4],
      consecutiveGroups: false,
    });
    output = freshPath();
    const plain = await convert();
    expect(plain.reason).not.toMatch(/share with/);
    const config = JSON.parse(await readFile(join(output, 'config.json'), 'utf8'));
    expect(config.molae.provenance).toEqual({ calibrationTokens: 1280, targetRatio: 0.5 });
    expect((await inspectCheckpoint(output)).latent).toMatchObject({ consecutiveGroups: true });
    const named = freshPath();
    await convertCalibrated(source, named, {
      ...{ calibration, groupSize: 4, targetRatio: 0.5, device },
      grouping: 'consecutive',
    });
    expect(await contents(named)).toEqual(await contents(output));
  });

  test('are what the report counts a token to need, by a plain count, and what that costs by the design', async () => {
    const r = 48;
    const { groupUse } = await convert({ ...TOGETHER, latentSize: r, targetRatio: undefined });
    const partitions = await partitionsOf(output);
    const inOrder = [0, 4, 8, 12].map((first) => [first, first + 1, first + 2, first + 3]);
    const needed = { chosen: 0, consecutive: 0 };
    await using model = await Model.open(source, { device });
    await calibrate(model, calibration, async ({ layer, routing }) => {
      const chosen = await routing.ids.read();
      const count = (groups: readonly (readonly number[])[]) => {
        let used = 0;
        for (let t = 0; t < calibration.length; t++) {
          const own = chosen.slice(t * topK, (t + 1) * topK);
          used += groups.filter((group) => group.some((expert) => own.includes(expert))).length;
        }
        return used / calibration.length;
      };
      needed.chosen += count(partitions[layer] as number[][]) / 4;
      needed.consecutive += count(inOrder) / 4;
      return undefined;
    });
    const { chosen: E, consecutive } = needed;
    expect(groupUse?.tokens).toBe(1280);
    expect(groupUse?.distinctGroups.measured).toBeCloseTo(E, 9);
    expect(groupUse?.distinctGroups.consecutive).toBeCloseTo(consecutive, 9);
    // G(1 − C(12, 4) / C(16, 4))
    expect(groupUse?.distinctGroups.uniform).toBeCloseTo(4 * (1 - 495 / 1820), 9);
    for (const [cost, dense, latent] of [
      ['flopsPerToken', 4 * 6 * topK * m * n, 4 * 6 * r * (n * E + m * topK)],
      ['weightBytesPerToken', 4 * 6 * topK * m * n, 4 * 6 * r * (n * E + m * topK)],
      ['allToAllBytesPerToken', 4 * 4 * E * n, 4 * 2 * E * 3 * r],
    ] as const) {
      expect((groupUse?.[cost].dense as number) / dense).toBeCloseTo(1, 9);
      expect((groupUse?.[cost].latent as number) / latent).toBeCloseTo(1, 9);
    }
    expect(needed.chosen).toBeLessThan(0.95 * needed.consecutive);
  });

  test('work with blocks, one B for gate and up, a dense down and sequentially', async () => {
    for (const options of [
      { quantize: 'q8', groupSize: 2 },
      { sharedGateUp: true },
      { operators: ['gate', 'up'], targetRatio: 0.3 },
      { sequential: true },
    ] as const) {
      output = freshPath();
      const { expertParameters, groupUse } = await convert({ ...AFFINITY, coActivation: 0.5, ...options });
      const { targetRatio = 0.5 } = options as { targetRatio?: number };
      expect(expertParameters.after).toBeLessThanOrEqual((1 - targetRatio) * expertParameters.before);
      const { measured, consecutive } = (groupUse as GroupUseReport).distinctGroups;
      expect(measured).toBeLessThan(consecutive);
      await using model = await Model.open(output, { device });
      const { perplexity: reached } = await perplexity(model, ids.slice(2560));
      expect(reached).toBeGreaterThan(90);
      expect(reached).toBeLessThan(130);
    }
  });

  test('in blocks, read half the bytes of bf16 factors, and a scale', async () => {
    const { groupUse: wide } = await convert({ ...TOGETHER, latentSize: 64, targetRatio: undefined });
    output = freshPath();
    const options = { latentSize: 64, targetRatio: undefined, quantize: 'q8' } as const;
    const { groupUse: narrow } = await convert({ ...TOGETHER, ...options });
    const [before, after] = [wide?.weightBytesPerToken.latent, narrow?.weightBytesPerToken.latent];
    expect((after as number) / (before as number)).toBeCloseTo(34 / 64, 9);
    expect(narrow?.flopsPerToken).toEqual(wide?.flopsPerToken);
    expect(narrow?.weightBytesPerToken.dense).toBe(wide?.weightBytesPerToken.dense);
  });

  test.each([
    ['allocated latent sizes', {}],
    ['one latent size', { latentSize: 64, targetRatio: undefined }],
  ])('a stopped run keeps its groups (%s), unless they would be others', async (_, sizes) => {
    const grouped = (own: Partial<CalibratedConversionOptions>) => convert({ ...AFFINITY, ...sizes, ...own });
    await grouped({});
    const wanted = await contents(output);
    output = freshPath();
    const same = await stopAndGoOn(grouped);
    expect(same.surveyed).toEqual([4, 0]);
    expect(same.report.resumedFiles).toBeGreaterThanOrEqual(3);
    expect(same.report.groupUse?.tokens).toBe(1280);
    expect(await contents(output)).toEqual(wanted);
    output = freshPath();
    const other = await stopAndGoOn(grouped, (own) => grouped({ ...TOGETHER, ...own, force: true }));
    expect(other.surveyed).toEqual([4, 4]);
    expect(other.report.resumedFiles).toBeLessThan(3);
    expect(await contents(output)).not.toEqual(wanted);
  });

  test('are searched with, and a group size that leaves no choice says so', async () => {
    const options = {
      search: true,
      window: 64,
      operators: ['gate', 'up', 'down'],
      sharedGateUp: false,
    } as const;
    const report = await convert({ ...TOGETHER, ...options, calibration: longer, groupSize: undefined });
    expect(report.search?.candidates.map(({ groupSize }) => groupSize)).toEqual([1, 2, 4, 8, 16]);
    const partitions = await partitionsOf(output);
    const hasChoice = report.groupSize > 1 && report.groupSize < experts;
    expect(report.reason).toMatch(hasChoice ? /fire together/ : /grouping by affinity has no choice/);
    expect(partitions.flat(2).every((expert, i) => expert === i % experts)).toBe(!hasChoice);
    await using model = await Model.open(source, { device });
    const given = { calibration: longer, window: 64, targetRatio: 0.5, groupSize: 4, sharedGateUp: false };
    const [plain, grouped] = [
      await searchCalibrated(model, given),
      await searchCalibrated(model, { ...given, ...TOGETHER }),
    ];
    // The same form, with fewer spaces for a token.
    expect(grouped.candidates[0]?.flopsPerToken).toBeLessThan(plain.candidates[0]?.flopsPerToken as number);
  }, 180_000);

  test('are refused without groups to choose, and with numbers that mean nothing', async () => {
    await expect(convert({ ...AFFINITY, groupSize: undefined })).rejects.toThrow(
      /no effect with groups of 1: each expert has its own. Give a groupSize of 2, 4, 8/,
    );
    await expect(convert({ ...AFFINITY, groupSize: 16 })).rejects.toThrow(/one has all 16 experts/);
    await expect(convert({ ...AFFINITY, groupSize: 1, search: true })).rejects.toThrow(/no effect/);
    await expect(convert({ ...AFFINITY, groupSize: 3 })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(convert({ coActivation: 0.5 })).rejects.toThrow(/needs grouping affinity/);
    await expect(convert({ ...AFFINITY, coActivation: 2 })).rejects.toThrow(/from 0 to 1/);
    await expect(rm(output)).rejects.toMatchObject({ code: 'ENOENT' });
  });
});
