import { afterAll, expect, test } from 'vitest';
import type { DenseExperts, LatentExperts } from '../../lib/experts.ts';
import { stackedSvdControl } from '../../lib/methods/control.ts';
import type { Method } from '../../lib/methods/method.ts';
import { stackedSvd, svd } from '../../lib/methods/stacked-svd.ts';
import { openTestDevice } from '../support/device.ts';
import { type DenseExpert, relativeError } from '../support/reference.ts';
import { elementsOf, makeLayer, requestFor, type TestLayer } from './support.ts';

const device = await openTestDevice();
afterAll(() => device.dispose());

async function compress(method: Method, { layer, sizes }: TestLayer, targetRatio: number, groupSize: number) {
  const request = { ...requestFor(sizes, targetRatio, layer.block.spec), groupSize };
  return (await method.prepare(request)).compress(layer);
}

test('where experts are the same, the control finds nothing that the paper finds', async () => {
  const layer = await makeLayer(device, 14, { change: (experts) => experts.fill(experts[0] as DenseExpert) });
  // r = 16: as many dimensions as the experts have together.
  const real = await compress(stackedSvd, layer, 0.15, 6);
  for (const { relativeError } of (real.block.experts as LatentExperts).report) {
    expect(relativeError).toBeLessThan(1e-5);
  }
  const control = await compress(stackedSvdControl, layer, 0.15, 6);
  const original = await elementsOf(layer.layer.block.experts as DenseExperts);
  const error = relativeError(await elementsOf(control.block.experts as DenseExperts), original);
  expect(error).toBeGreaterThan(0.2);
  expect(error).toBeLessThan(0.8);
  const { expertParameters, expertBytes, flopsPerToken } = real;
  expect(control).toMatchObject({ expertParameters, expertBytes, flopsPerToken });
  real.dispose();
  control.dispose();
});

test('of one expert alone, the control is its SVD', async () => {
  const layer = await makeLayer(device, 15);
  const alone = await compress(svd, layer, 0.4, 1);
  const control = await compress(stackedSvdControl, layer, 0.4, 1);
  const wanted = await (await alone.block.forward(layer.layer.x)).toFloat32();
  expect(relativeError(await (await control.block.forward(layer.layer.x)).toFloat32(), wanted)).toBeLessThan(
    1e-4,
  );
  alone.dispose();
  control.dispose();
});
