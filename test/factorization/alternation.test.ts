import { readFile } from 'node:fs/promises';
import { afterAll, describe, expect, test } from 'vitest';
import { openDevice } from '../../lib/device.ts';
import type { DenseExperts } from '../../lib/experts.ts';
import { type CalibratedOptions, factorizeCalibrated } from '../../lib/factorization/calibrated.ts';
import type { FactorizationReport } from '../../lib/factorization/report.ts';
import { calibrate } from '../../lib/model/calibration.ts';
import { Model } from '../../lib/model/model.ts';
import { Tokenizer } from '../../lib/model/tokenizer.ts';
import { fixture, TINY } from '../support/fixtures.ts';

const source = TINY;
const device = await openDevice('cpu');
const model = await Model.open(source, { device });
const tokenizer = await Tokenizer.open(source);
const ids = tokenizer.encode((await readFile(fixture('moby-dick.txt'), 'utf8')).slice(0, 12_000));

afterAll(async () => {
  await model.close();
  device.dispose();
});

/** The reports of the first layer's factors, one list for each of the options. */
async function factorized(...variants: CalibratedOptions[]): Promise<FactorizationReport[][]> {
  const reports: FactorizationReport[][] = [];
  await calibrate(model, ids, async ({ layer, x, routing, block }) => {
    if (layer > 0) return undefined;
    for (const options of variants) {
      const experts = await factorizeCalibrated(block.experts as DenseExperts, { x, routing }, options);
      reports.push([...(experts.report ?? [])]);
      experts.dispose();
    }
    return undefined;
  });
  return reports;
}

/** The error of an operator over all groups, root mean square. */
function errorOf(report: readonly FactorizationReport[] | undefined, operator: string): number {
  const errors = (report ?? []).filter((own) => own.operator === operator).map((own) => own.relativeError);
  expect(errors).toHaveLength(4);
  return Math.sqrt(errors.reduce((sum, error) => sum + error ** 2, 0) / errors.length);
}

describe('alternations', () => {
  // Little shrinkage: what is minimized then is what is reported.
  const options = { groupSize: 4, latentSize: 64, dtype: 'f32', shrinkage: 1 } as const;

  test('of bases and factors lose less and less of gate and up, and leave down as it was', async () => {
    const variants = [0, 1, 2].map((alternations) => ({ ...options, alternations }));
    const [none, once, twice] = await factorized(...variants);
    for (const operator of ['gate', 'up']) {
      expect(errorOf(once, operator)).toBeLessThan(errorOf(none, operator) * (1 - 1e-3));
      expect(errorOf(twice, operator)).toBeLessThan(errorOf(once, operator) * (1 + 1e-5));
    }
    expect(errorOf(twice, 'down')).toBe(errorOf(none, 'down'));
  });

  test('do no harm with factors of half precision, or where one of gate and up stays dense', async () => {
    for (const latentSize of [64, { gate: 64 }]) {
      const own = { ...options, latentSize, dtype: 'bf16' } as const;
      const [none, twice] = await factorized(own, { ...own, alternations: 2 });
      expect(errorOf(twice, 'gate')).toBeLessThan(errorOf(none, 'gate') * (1 + 1e-3));
    }
  });

  test('are steps of their own in what is reported of the progress', async () => {
    const seen: number[] = [];
    const totals = new Set<number>();
    await factorized({
      ...options,
      alternations: 2,
      onProgress: ({ done, total }) => {
        seen.push(done);
        totals.add(total);
      },
    });
    expect(seen).toEqual(Array.from({ length: 64 }, (_, i) => i + 1));
    expect([...totals]).toEqual([64]);
  });

  test.each([
    [{ alternations: -1 }, 'alternations'],
    [{ alternations: 1.5 }, 'alternations'],
    [{ alternations: 1, sharedGateUp: true }, 'bases of their own'],
  ])('%o is refused', async (steps, message) => {
    const refused = factorized({ ...options, ...steps });
    await expect(refused).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(refused).rejects.toThrow(message);
  });
});
