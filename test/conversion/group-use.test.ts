import { afterAll, expect, test } from 'vitest';
import type { MoeSpec } from '../../lib/checkpoint/family.ts';
import { GroupUseCounter } from '../../lib/conversion/calibrated/group-use.ts';
import type { FactorShapes } from '../../lib/conversion/layer-method.ts';
import { openDevice } from '../../lib/device.ts';
import type { CalibrationLayer } from '../../lib/model/calibration-layer.ts';

const device = await openDevice('cpu');
afterAll(() => device.dispose());

const [n, m, r, tokens] = [64, 96, 32, 5];
const SOURCE_BYTES = 2;

/** Of 4 experts in groups of 2, of which every token takes both of the second group. */
async function latentBytesPerToken(shapes: Pick<FactorShapes, 'operators' | 'quantization'>) {
  const spec = {
    numExperts: 4,
    topK: 2,
    hiddenSize: n,
    intermediateSize: m,
    layers: [0],
  } as unknown as MoeSpec;
  const groups = [
    [0, 1],
    [2, 3],
  ];
  const counter = new GroupUseCounter(
    spec,
    { ...shapes, sharedGateUp: false, groups: () => groups, latentSize: () => r },
    () => SOURCE_BYTES,
  );
  using ids = device.tensor(
    'i32',
    Int32Array.from({ length: 2 * tokens }, (_, slot) => 2 + (slot % 2)),
    [tokens, 2],
  );
  using weights = device.tensor('f32', new Float32Array(2 * tokens).fill(0.5), [tokens, 2]);
  await counter.count({ layer: 0, routing: { ids, weights } } as unknown as CalibrationLayer);
  expect(counter.report?.weightBytesPerToken.dense).toBeCloseTo(2 * 3 * m * n * SOURCE_BYTES, 6);
  return counter.report?.weightBytesPerToken.latent;
}

test.for([
  ['in the dtype of the source', undefined, SOURCE_BYTES],
  ['in blocks of 8 bits', 'q8', 34 / 32],
  ['in blocks of 4 bits', 'q4', 18 / 32],
] as const)('one token touches factors %s, and a dense down as it was', async ([, quantization, bytes]) => {
  const factors = 2 * (2 * r * m + r * n); // of gate and up: both experts' A, the group's B
  expect(await latentBytesPerToken({ operators: ['gate', 'up'], quantization })).toBeCloseTo(
    factors * bytes + 2 * m * n * SOURCE_BYTES,
    6,
  );
  expect(await latentBytesPerToken({ operators: ['gate', 'up', 'down'], quantization })).toBeCloseTo(
    1.5 * factors * bytes,
    6,
  );
});
