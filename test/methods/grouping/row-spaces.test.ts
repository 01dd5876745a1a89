import { afterAll, describe, expect, test } from 'vitest';
import { rowSpaceOverlaps } from '../../../lib/methods/grouping/row-spaces.ts';
import { openTestDevice } from '../../support/device.ts';
import type { DenseExpert } from '../../support/reference.ts';
import { makeLayer } from '../support.ts';

const device = await openTestDevice();
afterAll(() => device.dispose());
// Calibrated factors are not made on a GPU yet.
const onCpu = describe.skipIf(device.kind !== 'cpu');

/** Makes the third expert one whose rows span the same as the first one's, in another order. */
function makeTwin(experts: DenseExpert[]): void {
  const [first, , third] = experts as [DenseExpert, DenseExpert, DenseExpert];
  for (const operator of ['gate', 'up'] as const) {
    const { rows, cols, data } = first[operator];
    for (let row = 0; row < rows; row++) {
      third[operator].data.set(data.subarray((rows - 1 - row) * cols, (rows - row) * cols), row * cols);
    }
  }
}

onCpu('overlaps of row spaces', () => {
  test('are 1 of an expert with itself and its twin, less with strangers, symmetric', async () => {
    const { layer } = await makeLayer(device, 7, { change: makeTwin });
    const overlaps = await rowSpaceOverlaps(layer);
    for (const [i, row] of overlaps.entries()) {
      expect(row[i]).toBeCloseTo(1, 4);
      for (const [j, overlap] of row.entries()) {
        expect(overlap).toBeCloseTo(overlaps[j]?.[i] as number, 5);
        expect(overlap).toBeGreaterThanOrEqual(0);
        expect(overlap).toBeLessThanOrEqual(1 + 1e-4);
      }
    }
    const toTwin = overlaps[0]?.[2] as number;
    for (const stranger of [1, 3, 4, 5]) expect(toTwin).toBeGreaterThan(overlaps[0]?.[stranger] as number);
  });

  test('differ between experts on fewer inputs than directions, too', async () => {
    const { layer } = await makeLayer(device, 8, { n: 64, m: 64, tokens: 14, change: makeTwin });
    const [first] = (await rowSpaceOverlaps(layer)) as [Float64Array];
    // Spaces of all directions would fill what 14 inputs span: an overlap of 1.
    for (const stranger of [1, 3, 4, 5]) expect(first[stranger]).toBeLessThan(0.95);
  });
});
