import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { openCheckpoint } from '../../lib/checkpoint/checkpoint.ts';
import { convertCalibrated } from '../../lib/conversion/calibrated/convert.ts';
import type { CalibratedConversionOptions } from '../../lib/conversion/calibrated/options.ts';
import { convertCheckpoint } from '../../lib/conversion/convert.ts';
import type { ConvertProgress } from '../../lib/conversion/options.ts';
import { openDevice } from '../../lib/device.ts';
import { calibrationTokens } from '../../lib/model/calibration.ts';
import { KeptInputs, keptInputBytes } from '../../lib/model/kept-inputs.ts';
import { Model } from '../../lib/model/model.ts';
import { perplexity } from '../../lib/model/perplexity.ts';
import { Tokenizer } from '../../lib/model/tokenizer.ts';
import { sampleWindows, splitWindows } from '../../lib/model/windows.ts';
import { stopAndGoOn } from '../methods/support.ts';
import { copyDamaged } from '../support/damaged.ts';
import { openOwnDevice } from '../support/device.ts';
import { fixture, TINY } from '../support/fixtures.ts';
import { contents } from '../support/folders.ts';
import { freshPaths, outputFolder } from '../support/temporary.ts';

const source = TINY;
const device = await openDevice('cpu');
const tokenizer = await Tokenizer.open(source);
const text = await readFile(fixture('moby-dick.txt'), 'utf8');
const ids = tokenizer.encode(text);
const calibration = ids.slice(0, 2560);
const heldOut = ids.slice(2560);
const root = await outputFolder('calibrated');
const freshPath = freshPaths(root);
let output: string;

beforeEach(() => {
  output = freshPath();
});
afterAll(() => device.dispose());

const convert = (options: Partial<CalibratedConversionOptions> = {}) =>
  convertCalibrated(source, output, { calibration, groupSize: 4, targetRatio: 0.5, device, ...options });

async function perplexityOf(path: string): Promise<number> {
  await using model = await Model.open(path, { device });
  return (await perplexity(model, heldOut)).perplexity;
}

describe('calibrated conversion', () => {
  test.each<[string, Partial<CalibratedConversionOptions>]>([
    ['where latent sizes are chosen', {}],
    ['where factors are fitted', { latentSize: 64, targetRatio: undefined }],
  ])('NaN in a weight names tensor and position, %s, and leaves nothing behind', async (_, options) => {
    const name = 'model.layers.1.mlp.experts.6.up_proj.weight';
    const copy = `${output}-source`;
    await copyDamaged(source, copy, name, 3 * 256 + 7, 0x7fc0);
    await expect(
      convertCalibrated(copy, output, { calibration, groupSize: 4, targetRatio: 0.5, device, ...options }),
    ).rejects.toMatchObject({
      code: 'NON_FINITE',
      message: `Tensor ${name} has NaN or infinity at [3, 7]`,
    });
    await expect(stat(output)).rejects.toMatchObject({ code: 'ENOENT' });
  });

  test('costs at most 0.4 times the perplexity that the paper’s method costs, on text that it did not see', async () => {
    const report = await convert();
    const calibrated = output;
    const plain = join(root, 'plain');
    await convertCheckpoint(source, plain, { groupSize: 4, targetRatio: 0.5, device });
    const before = await perplexityOf(source);
    const increase = (await perplexityOf(calibrated)) - before;
    expect(increase).toBeLessThan(0.4 * ((await perplexityOf(plain)) - before));
    expect(report.expertParameters.after).toBeLessThanOrEqual(0.5 * report.expertParameters.before);
    expect(report.expertParameters.after).toBeGreaterThan(0.47 * report.expertParameters.before);
  });

  test('spends the budget unevenly, and the stored shapes are those reported', async () => {
    const { layers } = await convert();
    expect(new Set(layers.map(({ latentSize }) => latentSize)).size).toBeGreaterThan(3);
    await using converted = await openCheckpoint(output);
    for (const { layer, operator, group, latentSize } of layers) {
      const name = `model.layers.${layer}.mlp.latent_experts.${group}.${operator}_b`;
      expect(converted.shards.tensor(name).shape).toEqual(
        operator === 'down' ? [256, latentSize] : [latentSize, 256],
      );
    }
  });

  test('says how many tokens the experts saw, and which saw none', async () => {
    const { calibration: coverage } = await convert({ latentSize: 64, targetRatio: undefined });
    expect(coverage).toMatchObject({ tokens: 2560, window: 256 });
    expect(coverage.medianTokens).toBeGreaterThan(300);
    expect(coverage.fewestTokens).toBeLessThanOrEqual(coverage.medianTokens);
    expect(coverage.unusedExperts).toEqual([]);
  });

  test('a stopped run goes on with the same bytes as one that was not stopped', async () => {
    const options = { latentSize: 64, targetRatio: undefined };
    await convert(options);
    const wanted = await contents(output);
    output = join(root, 'stopped');
    const { report } = await stopAndGoOn((own) => convert({ ...options, ...own }));
    expect(report.resumedFiles).toBeGreaterThanOrEqual(3);
    expect(await contents(output)).toEqual(wanted);
  });

  test('a stopped run does not choose its latent sizes again, unless they would be others', async () => {
    await convert();
    const wanted = await contents(output);
    output = join(root, 'remembering');
    const same = await stopAndGoOn(convert);
    expect(same.surveyed).toEqual([4, 0]);
    expect(same.report.resumedFiles).toBeGreaterThanOrEqual(3);
    expect(await contents(output)).toEqual(wanted);
    output = join(root, 'changing');
    const other = await stopAndGoOn(convert, (own) => convert({ ...own, targetRatio: 0.4, force: true }));
    expect(other.surveyed).toEqual([4, 4]);
  });

  test('with other options, what a stopped run has finished is in the way before anything is surveyed', async () => {
    output = join(root, 'in-the-way');
    const surveyed: unknown[] = [];
    const others = stopAndGoOn(convert, (own) =>
      convert({ ...own, targetRatio: 0.4, onSurvey: (layer) => surveyed.push(layer) }),
    );
    await expect(others).rejects.toMatchObject({
      code: 'OUTPUT_UNFINISHED',
      message: expect.stringContaining('other options'),
    });
    expect(surveyed).toEqual([]);
  });

  test.each<[string, Partial<CalibratedConversionOptions>]>([
    ['is sequential', { sequential: true }],
    ['has another window', { window: 128 }],
  ])('a stopped run is not resumed by one that %s', async (_, other) => {
    const options = { latentSize: 64, targetRatio: undefined };
    const others = stopAndGoOn(
      (own) => convert({ ...options, ...own }),
      (own) => convert({ ...options, ...own, ...other }),
    );
    await expect(others).rejects.toMatchObject({ code: 'OUTPUT_UNFINISHED' });
  });

  test('an output that exists is refused before anything is surveyed', async () => {
    await convertCheckpoint(source, output, { groupSize: 4, latentSize: 32, device });
    const onSurvey = vi.fn();
    await expect(convert({ onSurvey })).rejects.toMatchObject({ code: 'OUTPUT_EXISTS' });
    expect(onSurvey).not.toHaveBeenCalled();
  });

  test('without a group size, each expert is a group, and the reason says what was done', async () => {
    const report = await convert({ groupSize: undefined });
    expect(report.groupSize).toBe(1);
    expect(report.reason).toMatch(/Groups of one expert compute least/);
    expect(report.reason).toMatch(/worth most, so that 50% of the experts' parameters go/);
    expect(report.reason).not.toMatch(/largest/);
    expect((await convert({ force: true })).reason).not.toMatch(/Groups of one|largest/);
  });

  test('a stopped sequential run goes on with the same bytes, too', async () => {
    const options = { latentSize: 64, targetRatio: undefined, sequential: true };
    await convert(options);
    const wanted = await contents(output);
    output = join(root, 'stopped-sequential');
    const steps: string[] = [];
    const onProgress = ({ done, total }: ConvertProgress) => steps.push(`${done} of ${total}`);
    const { report } = await stopAndGoOn(
      (own) => convert({ ...options, ...own }),
      (own) => convert({ ...options, ...own, onProgress }),
    );
    expect(await contents(output)).toEqual(wanted);
    // Finished layers are factorized again for what follows them, which is no progress.
    expect(report.resumedFiles).toBeGreaterThan(0);
    expect(steps.length).toBeLessThan(128);
    expect(steps).toEqual(steps.map((_, i) => `${128 - steps.length + i + 1} of 128`));
  });

  test('as dense experts it is the same model', async () => {
    await convert();
    const latent = await perplexityOf(output);
    output = join(root, 'dense');
    await convert({ format: 'dense' });
    expect((await perplexityOf(output)) / latent).toBeCloseTo(1, 2);
  });

  test('leaves operators dense that are not asked for, and counts them in the budget', async () => {
    const report = await convert({ operators: ['gate', 'up'], targetRatio: 0.3 });
    expect(report.expertParameters.after).toBeLessThanOrEqual(0.7 * report.expertParameters.before);
    expect(new Set(report.layers.map(({ operator }) => operator))).toEqual(new Set(['gate', 'up']));
    expect(Number.isFinite(await perplexityOf(output))).toBe(true);
  });

  test('one latent space for gate and up', async () => {
    const report = await convert({ sharedGateUp: true, targetRatio: 0.3 });
    expect(report.expertParameters.after).toBeLessThanOrEqual(0.7 * report.expertParameters.before);
    expect(Number.isFinite(await perplexityOf(output))).toBe(true);
  });

  test('leaves no device memory behind', async () => {
    using own = await openOwnDevice();
    await convert({ sequential: true, device: own });
    expect(own.memoryUsage().tensors).toBe(0);
  });

  test('refuses too little text, contradicting sizes, a converted source and a family that it cannot run', async () => {
    await expect(convert({ calibration: ids.slice(0, 100) })).rejects.toThrow(
      /at least 1024 tokens for calibration .*100 tokens/,
    );
    await expect(convert({ latentSize: 64 })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(convert({ targetRatio: 0.999 })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(convert({ keptBytes: -1 })).rejects.toThrow(/number of bytes, at least 0 for keptBytes/);
    await expect(convert({ window: 100_000 })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await convertCheckpoint(source, output, { groupSize: 4, latentSize: 32, device });
    await expect(
      convertCalibrated(output, join(root, 'again'), { calibration, targetRatio: 0.3, device }),
    ).rejects.toThrow(/was converted already/);
    const other = fixture('families/granitemoe');
    await expect(
      convertCalibrated(other, join(root, 'other'), { calibration, targetRatio: 0.3, device }),
    ).rejects.toMatchObject({ code: 'UNSUPPORTED_CHECKPOINT' });
  });

  test.each<[string, Partial<CalibratedConversionOptions>, RegExp]>([
    ['a signal that is none', { signal: 5 as never }, /an AbortSignal for signal/],
    ['a device by its name', { device: 'cpu' as never }, /a device of openDevice\(\) for device/],
    ['an onProgress that is none', { onProgress: 5 as never }, /a function for onProgress/],
    ['an onSurvey that is none', { onSurvey: 'x' as never }, /a function for onSurvey/],
    ['an onCandidate that is none', { onCandidate: {} as never }, /a function for onCandidate/],
  ])('%s is refused before anything is opened', async (_, options, message) => {
    const call = convertCalibrated('/nowhere', output, {
      calibration,
      targetRatio: 0.5,
      device,
      ...options,
    });
    await expect(call).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(call).rejects.toThrow(message);
    const none = convertCalibrated('/nowhere', output, undefined as never);
    await expect(none).rejects.toThrow(/an object for options/);
  });
});

describe('layer inputs kept from the survey', () => {
  afterEach(() => void vi.restoreAllMocks());
  const spec = { hiddenSize: 256, topK: 4, layers: [0, 1, 2, 3] };
  /** A quarter of 2560 tokens, in whole windows of 256. */
  const bytes = keptInputBytes(spec, 512);

  test('take 4n + 8K bytes for each token and layer', () => {
    expect(bytes).toBe(4 * 512 * (4 * 256 + 8 * 4));
  });

  test.each([
    ['latent sizes by worth', {}],
    ['groups by affinity', { grouping: 'affinity', latentSize: 48, targetRatio: undefined }],
  ] as const)('change no bit of the result beside a second pass (%s)', async (_, options) => {
    const putBack = vi.spyOn(KeptInputs.prototype, 'putBack');
    await convert({ ...options, keptBytes: bytes });
    expect(putBack).toHaveBeenCalledTimes(4);
    const wanted = await contents(output);
    output = freshPath();
    await convert({ ...options, keptBytes: bytes - 1 });
    expect(putBack).toHaveBeenCalledTimes(4);
    expect(await contents(output)).toEqual(wanted);
  });

  test('are not what the layers of a sequential conversion see', async () => {
    const putBack = vi.spyOn(KeptInputs.prototype, 'putBack');
    await convert({ sequential: true });
    expect(putBack).not.toHaveBeenCalled();
  });
});

describe('calibration text', () => {
  test('is sampled as whole windows from all over', () => {
    const all = Array.from({ length: 1000 }, (_, i) => i);
    const some = sampleWindows(all, 300, 100);
    expect(some).toHaveLength(300);
    expect(some.filter((_, i) => i % 100 === 0)).toEqual([0, 300, 600]);
    expect(sampleWindows(all, 5000, 100)).toEqual(all);
    expect(sampleWindows(all, 10, 100)).toHaveLength(100);
  });

  test('is all in a sample and what that leaves', () => {
    const all = Array.from({ length: 1030 }, (_, i) => i);
    for (const tokens of [10, 300, 999, 1000, 5000]) {
      const { sample, rest } = splitWindows(all, tokens, 100);
      expect(sample).toEqual(sampleWindows(all, tokens, 100));
      expect([...sample, ...rest].sort((a, b) => a - b)).toEqual(all);
      expect(rest).toEqual([...rest].sort((a, b) => a - b));
    }
  });

  test('serves each expert with 4096 tokens on average, within limits', () => {
    expect(calibrationTokens({ numExperts: 60, topK: 4 })).toBe(61_440);
    expect(calibrationTokens({ numExperts: 8, topK: 2 })).toBe(16_384);
    expect(calibrationTokens({ numExperts: 64, topK: 6 })).toBe(45_056);
    expect(calibrationTokens({ numExperts: 512, topK: 8 })).toBe(131_072);
  });
});
