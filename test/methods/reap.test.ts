import { afterAll, expect, test } from 'vitest';
import type { DenseExperts } from '../../lib/experts.ts';
import { reap, routerWeightedActivation } from '../../lib/methods/reap.ts';
import { openTestDevice } from '../support/device.ts';
import { expertOutput, type Matrix, relativeError } from '../support/reference.ts';
import { makeLayer, prepare, requestFor, SIZES, slotsOf, type TestLayer } from './support.ts';

const device = await openTestDevice();
afterAll(() => device.dispose());

function plainActivation({ experts, x, ids, weights, sizes }: TestLayer): number[] {
  return experts.map((expert, i) => {
    const slots = slotsOf(ids, i);
    const norms = slots.map((slot) => {
      const token = Math.floor(slot / sizes.topK);
      const y = expertOutput(expert, x.data.subarray(token * x.cols, (token + 1) * x.cols), 'silu');
      return (weights[slot] as number) * Math.hypot(...y);
    });
    return slots.length === 0 ? 0 : norms.reduce((a, b) => a + b) / slots.length;
  });
}

/** Experts 0, 1, 2 and 4 always have a logit of 0, and on a tie the lower index wins: 2 and 4 never fire. */
const twoSilent = (router: Matrix) => {
  for (const expert of [0, 1, 2, 4]) router.data.fill(0, expert * router.cols, (expert + 1) * router.cols);
};

test('the activation of every expert is that of plain loops, 0 where no token came', async () => {
  const layer = await makeLayer(device, 2, { router: twoSilent });
  const found = await routerWeightedActivation(layer.layer);
  expect(relativeError(found, plainActivation(layer))).toBeLessThan(1e-5);
  expect([found[2], found[4]]).toEqual([0, 0]);
});

test('pruning experts that never fire changes nothing on those tokens, and only their parameters go', async () => {
  const layer = await makeLayer(device, 3, { router: twoSilent });
  const { block, expertParameters, dispose } = await (await prepare(reap, layer, 0.33)).compress(layer.layer);
  expect(block.experts.numExperts).toBe(4);
  expect(expertParameters).toBe(4 * 3 * 24 * 16);
  const wanted = await (await layer.layer.block.forward(layer.layer.x)).toFloat32();
  const pruned = await (await block.forward(layer.layer.x)).toFloat32();
  expect(relativeError(pruned, wanted)).toBeLessThan(1e-6);
  dispose();
  // The original still works.
  expect(await (await layer.layer.block.forward(layer.layer.x)).toFloat32()).toHaveLength(wanted.length);
});

test('the best stay, in their order, with their own router rows', async () => {
  const layer = await makeLayer(device, 4);
  const activation = plainActivation(layer);
  const best = [0, 1, 2, 3, 4, 5]
    .sort((a, b) => (activation[b] as number) - (activation[a] as number))
    .slice(0, 3)
    .sort();
  const { block, dispose } = await (await prepare(reap, layer, 0.5)).compress(layer.layer);
  const router = await layer.layer.block.router.read();
  expect([...(await block.router.read())]).toEqual(
    best.flatMap((expert) => [...router.subarray(24 * expert, 24 * expert + 24)]),
  );
  const gates = (layer.layer.block.experts as DenseExperts).gate;
  expect((block.experts as DenseExperts).gate).toEqual(best.map((expert) => gates[expert]));
  dispose();
});

test('where the router chooses groups of experts first, the same number goes from each', async () => {
  const groupLimit = { numGroups: 2, chosenGroups: 1, score: 'max' } as const;
  const layer = await makeLayer(device, 5, { spec: { groupLimit } });
  const { block, dispose } = await (await prepare(reap, layer, 0.3)).compress(layer.layer);
  const gates = (layer.layer.block.experts as DenseExperts).gate;
  const kept = (block.experts as DenseExperts).gate.map((tensor) => gates.indexOf(tensor));
  expect(kept.filter((expert) => expert < 3)).toHaveLength(2);
  expect(kept.filter((expert) => expert >= 3)).toHaveLength(2);
  expect((await block.forward(layer.layer.x)).shape).toEqual([300, 24]);
  dispose();
});

test('fewer experts than a token chooses are refused', () => {
  expect(() => reap.check(requestFor(SIZES, 0.7))).toThrow(/at least 2 of 6 experts for targetRatio .* 0\.7/);
  const groupLimit = { numGroups: 2, chosenGroups: 1, score: 'max' } as const;
  expect(() => reap.check(requestFor(SIZES, 0.5, { groupLimit }))).toThrow(/2 of 6 experts in 1 of 2 groups/);
});
