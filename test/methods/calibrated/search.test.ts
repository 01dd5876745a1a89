import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { convertCalibrated } from '../../../lib/conversion/calibrated/convert.ts';
import { calibrated, calibrated4Bits } from '../../../lib/methods/calibrated/calibrated.ts';
import {
  chooseCandidate,
  pairedDifference,
  type SearchOptions,
  searchCalibrated,
  searchedGroupSizes,
} from '../../../lib/methods/calibrated/search.ts';
import { compareMethods } from '../../../lib/methods/compare.ts';
import { Model } from '../../../lib/model/model.ts';
import { perplexity } from '../../../lib/model/perplexity.ts';
import { Tokenizer } from '../../../lib/model/tokenizer.ts';
import { cutWindows } from '../../../lib/model/windows.ts';
import { OPERATORS } from '../../../lib/operators.ts';
import { openOwnDevice } from '../../support/device.ts';
import { fixture, TINY } from '../../support/fixtures.ts';
import { specOf } from '../../support/sizes.ts';
import { temporaryFolder } from '../../support/temporary.ts';
import { requestFor } from '../support.ts';

const source = TINY;
const device = await openOwnDevice();
const tokenizer = await Tokenizer.open(source);
const text = await readFile(fixture('moby-dick.txt'), 'utf8');
const WINDOW = 64;
const calibration = tokenizer.encode(text).slice(0, 40 * WINDOW);
let model: Model;

beforeAll(async () => {
  model = await Model.open(source, { device });
});
afterAll(async () => {
  await model.close();
  device.dispose();
});

const search = (options: Partial<SearchOptions> = {}) =>
  searchCalibrated(model, { calibration, window: WINDOW, targetRatio: 0.5, ...options });

describe('search', () => {
  test('tries what is not given, meets the target each time, and judges by text that it does not fit to', async () => {
    await perplexity(model, calibration, { window: WINDOW }); // the model's working memory stays
    const before = device.memoryUsage().tensors;
    const { candidates, unreachable, chosen, tokens } = await search({ groupSize: 4 });
    expect(candidates.map(({ sharedGateUp, operators }) => [sharedGateUp, operators.join()])).toEqual([
      [false, 'gate,up,down'],
      [true, 'gate,up,down'],
      [false, 'gate,up'],
    ]);
    expect(unreachable).toEqual([]);
    for (const { ratio, perplexity: reached, excessLoss, standardError } of candidates) {
      expect(ratio).toBeLessThanOrEqual(0.5);
      expect(ratio).toBeGreaterThan(0.45);
      expect(reached).toBeGreaterThan(1);
      expect(excessLoss).toBeGreaterThanOrEqual(0);
      expect(standardError === 0).toBe(excessLoss === 0);
    }
    expect(candidates).toContain(chosen);
    expect(tokens).toEqual({ calibration: 30 * WINDOW, heldOut: 10 * WINDOW });
    expect(device.memoryUsage().tensors).toBe(before);
    const heldOut = cutWindows(calibration, WINDOW).filter((_, i) => i % 4 === 3);
    const original = await perplexity(model, heldOut.flat(), { window: WINDOW });
    const best = Math.min(...candidates.map((candidate) => candidate.perplexity));
    expect(best).toBeGreaterThan(0.9 * original.perplexity);
    expect(best).toBeLessThan(1.3 * original.perplexity);
  });

  test('judges factors in blocks where such are to be stored', async () => {
    const { candidates } = await search({ groupSize: 4, operators: OPERATORS, quantize: 'q4' });
    const windows = cutWindows(calibration, WINDOW);
    const isHeldOut = (_: unknown, i: number) => i % 4 === 3;
    const rows = compareMethods(model, {
      methods: [calibrated, calibrated4Bits],
      targetRatios: [0.5],
      groupSizes: [4],
      window: WINDOW,
      calibration: windows.filter((own, i) => !isHeldOut(own, i)).flat(),
      evaluation: windows.filter(isHeldOut).flat(),
    });
    const reached = new Map<string, number>();
    for await (const row of rows) reached.set(row.method, row.perplexity);
    expect(candidates[0]?.perplexity).toBe(reached.get(calibrated4Bits.name));
    expect(candidates[0]?.perplexity).not.toBe(reached.get(calibrated.name));
  });

  test('takes latent sizes in whole blocks into account where there is room for some', async () => {
    const large = {
      streams: false,
      checkpoint: { format: 'dense', spec: specOf(1024, 64, 8, 2, 1) },
      spec: { contextLength: 1024 },
    } as unknown as Model;
    const least = (quantize: 'q8' | undefined) =>
      searchCalibrated(large, { calibration, window: WINDOW, targetRatio: 0.99, quantize });
    await expect(least('q8')).rejects.toThrow(/a latent size of 32 for gate, up, down takes/);
    await expect(least(undefined)).rejects.toThrow(/a latent size of 16 for gate, up, down takes/);
    // With groups of one, 32 directions are more than half of the 64 x 1024 elements; 16 are not.
    const request = { ...requestFor({ n: 1024, m: 64, experts: 8, topK: 2, tokens: 0 }, 0.6), groupSize: 1 };
    calibrated.check(request);
    expect(() => calibrated4Bits.check(request)).toThrow(/a share that leaves a latent size of 32/);
  });

  test('names the forms that cannot meet the target, and refuses where none can', async () => {
    const { unreachable, chosen } = await search({ groupSize: 16, targetRatio: 0.7, sharedGateUp: false });
    expect(unreachable).toHaveLength(1);
    expect(unreachable[0]).toMatchObject({
      operators: ['gate', 'up'],
      reason: expect.stringMatching(/leaves -/),
    });
    expect(chosen.operators).toEqual(['gate', 'up', 'down']);
    await expect(search({ groupSize: 4, targetRatio: 0.999 })).rejects.toThrow(
      /No candidate removes the share 0.999/,
    );
  });

  test('refuses too little text, nothing to search for, a bad share and a model that streams', async () => {
    await expect(search({ calibration: calibration.slice(0, 31 * WINDOW) })).rejects.toThrow(
      /at least 32 windows of 64 tokens .*1984 tokens/,
    );
    const everything = { groupSize: 4, sharedGateUp: false, operators: ['gate', 'up', 'down'] as const };
    await expect(search(everything)).rejects.toThrow(/Nothing is left to search for/);
    await expect(search({ targetRatio: 1 })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(search({ groupSize: 3 })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(search({ quantize: 'q5' as never })).rejects.toThrow(/q8 or q4 for quantize/);
    await using streaming = await Model.open(source, { device, stream: true });
    await expect(searchCalibrated(streaming, { calibration, targetRatio: 0.5 })).rejects.toThrow(
      /all layers in memory/,
    );
  });

  test('stops when asked, and the model is as it was', async () => {
    const controller = new AbortController();
    const stopped = search({
      signal: controller.signal,
      onCandidate: ({ groupSize }) => {
        if (groupSize === 2) controller.abort();
      },
    });
    await expect(stopped).rejects.toMatchObject({ code: 'ABORTED' });
    const ids = calibration.slice(0, 4 * WINDOW);
    await using fresh = await Model.open(source, { device });
    expect((await perplexity(model, ids)).perplexity).toBe((await perplexity(fresh, ids)).perplexity);
  });

  test('in a conversion, its choice is made and recorded in the config', async () => {
    const output = join(await temporaryFolder(), 'out');
    const given = { groupSize: 2, operators: ['gate', 'up', 'down'] as const };
    const options = { calibration, window: WINDOW, targetRatio: 0.5, ...given, search: true, device };
    const report = await convertCalibrated(source, output, options);
    const chosen = report.search?.chosen;
    expect(report.groupSize).toBe(2);
    expect([...new Set(report.layers.map(({ operator }) => operator))]).toEqual(chosen?.operators);
    const { molae } = JSON.parse(await readFile(join(output, 'config.json'), 'utf8'));
    expect(molae.provenance).toMatchObject({
      calibrationTokens: calibration.length,
      targetRatio: 0.5,
      search: {
        chosen: { groupSize: 2, sharedGateUp: chosen?.sharedGateUp, perplexity: chosen?.perplexity },
      },
    });
    expect(molae.provenance.search.candidates).toHaveLength(report.search?.candidates.length as number);
    await using converted = await Model.open(output, { device });
    expect(Number.isFinite((await perplexity(converted, calibration.slice(0, 256))).perplexity)).toBe(true);
  });
});

describe('the choice', () => {
  const candidate = (excessLoss: number, standardError: number, flopsPerToken: number) => ({
    excessLoss,
    standardError,
    flopsPerToken,
  });

  test('takes the one that computes least within one standard error of the best, never one beyond', () => {
    const best = candidate(0, 0, 100);
    const close = candidate(0.01, 0.02, 80);
    const closer = candidate(0.005, 0.02, 80);
    const far = candidate(0.03, 0.02, 10);
    expect(chooseCandidate([far, best, close])).toBe(close);
    expect(chooseCandidate([far, close, best, closer])).toBe(closer);
    expect(chooseCandidate([far, best])).toBe(best);
  });

  test('knows differences by window, whose noise both share', () => {
    const losses = (...totals: number[]) => totals.map((total) => ({ total, tokens: 10 }));
    const same = pairedDifference(losses(5, 50, 20), losses(4, 49, 19));
    expect(same.mean).toBeCloseTo(0.1, 12);
    expect(same.standardError).toBeCloseTo(0, 12);
    // Differences 3, 0, 3: mean 2, deviation √3, of the mean 1; per token a tenth of it.
    const noisy = pairedDifference(losses(7, 49, 22), losses(4, 49, 19));
    expect(noisy.mean).toBeCloseTo(0.2, 12);
    expect(noisy.standardError).toBeCloseTo(0.1, 12);
  });

  test('group sizes are divisors from 1 to all experts, five at most', () => {
    expect(searchedGroupSizes({ numExperts: 16 })).toEqual([1, 2, 4, 8, 16]);
    expect(searchedGroupSizes({ numExperts: 60 })).toEqual([1, 3, 6, 20, 60]);
    expect(searchedGroupSizes({ numExperts: 7 })).toEqual([1, 7]);
    expect(searchedGroupSizes({ numExperts: 1 })).toEqual([1]);
  });
});
