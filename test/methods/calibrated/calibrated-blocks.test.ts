import { readFile } from 'node:fs/promises';
import { afterAll, expect, test } from 'vitest';
import { openDevice } from '../../../lib/device.ts';
import { calibrated, calibrated4Bits, calibrated8Bits } from '../../../lib/methods/calibrated/calibrated.ts';
import { type ComparisonRow, compareMethods } from '../../../lib/methods/compare.ts';
import { Model } from '../../../lib/model/model.ts';
import { Tokenizer } from '../../../lib/model/tokenizer.ts';
import { deadline } from '../../support/deadline.ts';
import { fixture, TINY } from '../../support/fixtures.ts';

const source = TINY;
const text = fixture('moby-dick.txt');
const device = await openDevice('cpu');
afterAll(() => device.dispose());

test('rounded factors: the parameters of the exact ones, 8.5 and 4.5 bits each, and nearly their perplexity', {
  timeout: deadline(120),
}, async () => {
  const ids = (await Tokenizer.open(source)).encode(await readFile(text, 'utf8'));
  await using model = await Model.open(source, { device });
  const rows = new Map<string, ComparisonRow>();
  const request = {
    methods: [calibrated, calibrated8Bits, calibrated4Bits],
    targetRatios: [0.5],
    groupSizes: [4],
    calibration: ids.slice(0, 2048),
    evaluation: ids.slice(2048, 4096),
  };
  for await (const row of compareMethods(model, request)) rows.set(row.method, row);
  const exact = rows.get('calibrated') as ComparisonRow;
  for (const [name, bits, worse] of [
    ['calibrated-q8', 8.5, 1.001],
    ['calibrated-q4', 4.5, 1.03],
  ] as const) {
    const row = rows.get(name) as ComparisonRow;
    expect(row.expertParameters).toBe(exact.expertParameters);
    // Rows that are no multiple of 32 end in a shorter block, which takes as much.
    expect(row.bytes / exact.bytes).toBeGreaterThanOrEqual(bits / 16);
    expect(row.bytes / exact.bytes).toBeLessThan((1.15 * bits) / 16);
    expect(row.perplexity / exact.perplexity).toBeLessThan(worse);
    expect(row.perplexity).not.toBe(exact.perplexity);
  }
});
