import { afterAll, describe, expect, test } from 'vitest';
import type { DenseExperts } from '../../lib/experts.ts';
import { averageLinkage } from '../../lib/methods/clustering.ts';
import { hcSmoe } from '../../lib/methods/hc-smoe.ts';
import { openTestDevice } from '../support/device.ts';
import { Random } from '../support/random.ts';
import { type DenseExpert, relativeError } from '../support/reference.ts';
import { makeLayer, prepare, slotsOf } from './support.ts';

const device = await openTestDevice();
afterAll(() => device.dispose());

/** By the definition, distances from all pairs each time. */
function plainClustering(points: readonly number[][], count: number): number[][] {
  const clusters = points.map((_, i) => [i]);
  const distance = (a: number, b: number) =>
    Math.hypot(...(points[a] as number[]).map((value, i) => value - (points[b]?.[i] as number)));
  while (clusters.length > count) {
    let best = [0, 1, Number.POSITIVE_INFINITY] as [number, number, number];
    for (const [i, a] of clusters.entries()) {
      for (let j = i + 1; j < clusters.length; j++) {
        const b = clusters[j] as number[];
        const sum = a.reduce((total, x) => total + b.reduce((part, y) => part + distance(x, y), 0), 0);
        if (sum / (a.length * b.length) < best[2]) best = [i, j, sum / (a.length * b.length)];
      }
    }
    const [i, j] = best;
    clusters[i]?.push(...(clusters[j] as number[]));
    clusters.splice(j, 1);
  }
  return clusters
    .map((cluster) => cluster.sort((a, b) => a - b))
    .sort((a, b) => (a[0] as number) - (b[0] as number));
}

describe('average linkage', () => {
  test.each([1, 2, 5, 9, 14])('merges as the definition says, down to %i clusters', (count) => {
    for (let seed = 0; seed < 10; seed++) {
      const random = new Random(seed);
      const points = Array.from({ length: 14 }, () => [random.normal(), random.normal(), random.normal()]);
      expect(averageLinkage(points, count)).toEqual(plainClustering(points, count));
    }
  });
});

const clone = (experts: DenseExpert[], from: number, to: number) => {
  experts[to] = experts[from] as DenseExpert;
};

test('merging identical experts loses nothing, also where a token chose two of them, and stores them once', async () => {
  const layer = await makeLayer(device, 6, {
    dtype: 'bf16',
    change: (experts) => {
      clone(experts, 0, 3);
      clone(experts, 1, 5);
      clone(experts, 1, 2);
    },
  });
  const both = Array.from({ length: 300 }, (_, t) => [layer.ids[2 * t], layer.ids[2 * t + 1]].sort().join());
  expect(both).toContain('0,3');
  const compressor = await prepare(hcSmoe, layer, 0.5);
  const { block, expertParameters, expertBytes, dispose } = await compressor.compress(layer.layer);
  expect(expertParameters).toBe(3 * 3 * 24 * 16);
  expect(expertBytes).toBe(2 * expertParameters);
  const wanted = await (await layer.layer.block.forward(layer.layer.x)).toFloat32();
  expect(relativeError(await (await block.forward(layer.layer.x)).toFloat32(), wanted)).toBeLessThan(1e-6);
  dispose();
});

test('a merged expert is the mean of its members, weighted by how often they were chosen', async () => {
  const layer = await makeLayer(device, 7, {
    change: (experts) => {
      // Nearly alike, so that they meet.
      const other = experts[1] as DenseExpert;
      experts[4] = {
        ...other,
        gate: { ...other.gate, data: other.gate.data.map((w) => Math.fround(w * 1.01)) },
      };
    },
  });
  const [ones, fours] = [slotsOf(layer.ids, 1).length, slotsOf(layer.ids, 4).length];
  expect(ones).not.toBe(fours);
  const { block, dispose } = await (await prepare(hcSmoe, layer, 0.16)).compress(layer.layer);
  const { gate } = block.experts as DenseExperts;
  expect(gate[1]).toBe(gate[4]);
  const share = ones / (ones + fours);
  const [a, b] = [1, 4].map((expert) => (layer.experts[expert] as DenseExpert).gate.data);
  const mean = (a as Float64Array).map((value, i) => share * value + (1 - share) * (b?.[i] as number));
  expect(relativeError((await gate[1]?.toFloat32()) ?? [], mean)).toBeLessThan(1e-6);
  dispose();
});
