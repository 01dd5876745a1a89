import { afterAll, describe, expect, test } from 'vitest';
import { SafetensorsFile } from '../../lib/checkpoint/safetensors/reader.ts';
import { type CompareRequest, type ComparisonRow, compareMethods } from '../../lib/methods/compare.ts';
import type { Method } from '../../lib/methods/method.ts';
import { METHODS } from '../../lib/methods/methods.ts';
import { Model } from '../../lib/model/model.ts';
import { perplexity } from '../../lib/model/perplexity.ts';
import { deadline } from '../support/deadline.ts';
import { openTestDevice } from '../support/device.ts';
import { fixture, TINY } from '../support/fixtures.ts';

const device = await openTestDevice();
const model = await Model.open(TINY, { device });
const file = await SafetensorsFile.open(fixture('ppl-tokens.safetensors'));
const ids = [...new BigInt64Array((await file.read('moby')).slice().buffer)].map(Number);
await file.close();
afterAll(async () => {
  await model.close();
  device.dispose();
});

const [calibration, evaluation] = [ids.slice(0, 1024), ids.slice(1024, 1536)];

async function collect(request: Partial<CompareRequest>): Promise<ComparisonRow[]> {
  const rows: ComparisonRow[] = [];
  const all = { methods: METHODS, targetRatios: [0.5], calibration, evaluation, ...request };
  for await (const row of compareMethods(model, all)) rows.push(row);
  return rows;
}

const named = (...names: string[]) => METHODS.filter(({ name }) => names.includes(name));

describe('a comparison', () => {
  test('every method keeps its budget, runs, and leaves the model as it was', {
    timeout: deadline(180),
  }, async () => {
    const [dense, ...rows] = (await collect({})) as [ComparisonRow, ...ComparisonRow[]];
    expect(dense).toMatchObject({ method: 'dense', ratio: 1, expertParameters: 4 * 16 * 3 * 96 * 256 });
    expect(dense.flopsPerToken).toBe(6 * 4 * 4 * 96 * 256);
    expect(rows.map(({ method }) => method)).toEqual(METHODS.map(({ name }) => name));
    for (const row of rows) {
      const quantized = row.method.startsWith('q');
      expect(row.ratio, row.method).toBeLessThanOrEqual(quantized ? 1 : 0.5);
      // One step of the largest groups is 3.1% of all.
      expect(row.ratio, row.method).toBeGreaterThan(quantized ? 0.999 : 0.46);
      expect(row.perplexity / dense.perplexity, row.method).toBeGreaterThan(0.98);
      expect(row.perplexity / dense.perplexity, row.method).toBeLessThan(3);
      expect(row.perplexity, row.method).not.toBe(dense.perplexity);
    }
    const again = await perplexity(model, evaluation);
    expect(again.perplexity).toBe(dense.perplexity);
  });

  test('grouped methods run with every group size, the others once, and widths of their own once in all', async () => {
    const rows = await collect({
      methods: named('stacked-svd', 'svd', 'q4'),
      targetRatios: [0.3, 0.5],
      groupSizes: [1, 4],
      calibration: calibration.slice(0, 256),
      evaluation: evaluation.slice(0, 256),
    });
    const told = rows.map(({ method, targetRatio, groupSize }) => [method, targetRatio, groupSize]);
    expect(told).toEqual([
      ['dense', 0, undefined],
      ['stacked-svd', 0.3, 1],
      ['stacked-svd', 0.3, 4],
      ['stacked-svd', 0.5, 1],
      ['stacked-svd', 0.5, 4],
      ['svd', 0.3, 1],
      ['svd', 0.5, 1],
      ['q4', 0, undefined],
    ]);
    // Of one expert alone, the paper's method is its SVD.
    expect(rows[5]?.perplexity).toBe(rows[1]?.perplexity);
  });

  test('what a method cannot do is told with its name, before any work', async () => {
    const rows = compareMethods(model, { methods: METHODS, targetRatios: [0.8], calibration, evaluation });
    await expect(rows.next()).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringMatching(/^reap: .*at least 4 of 16 experts/),
    });
    const odd = compareMethods(model, {
      methods: named('stacked-svd'),
      targetRatios: [0.5],
      groupSizes: [3],
      calibration,
      evaluation,
    });
    await expect(odd.next()).rejects.toMatchObject({
      message: expect.stringMatching(/^stacked-svd: .*groupSize/),
    });
  });

  test('a model that streams is refused: its layers do not stay', async () => {
    await using streaming = await Model.open(TINY, { device, stream: true });
    const rows = compareMethods(streaming, {
      methods: METHODS,
      targetRatios: [0.3],
      calibration,
      evaluation,
    });
    await expect(rows.next()).rejects.toMatchObject({ message: expect.stringContaining('in memory') });
  });

  test('a method that fails midway leaves the model as it was', async () => {
    const [stacked] = named('stacked-svd') as [Method];
    const failing: Method = {
      ...stacked,
      async prepare(request) {
        const compressor = await stacked.prepare(request);
        return {
          async compress(layer) {
            if (layer.layer === 2) throw new Error('midway');
            return compressor.compress(layer);
          },
        };
      },
    };
    const before = await perplexity(model, evaluation.slice(0, 256));
    await expect(collect({ methods: [failing] })).rejects.toThrow('midway');
    expect((await perplexity(model, evaluation.slice(0, 256))).perplexity).toBe(before.perplexity);
  });
});
