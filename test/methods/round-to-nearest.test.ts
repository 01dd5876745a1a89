import { afterAll, expect, test } from 'vitest';
import { openDevice } from '../../lib/device.ts';
import type { DenseExperts } from '../../lib/experts.ts';
import { roundTo4Bits, roundTo8Bits } from '../../lib/methods/round-to-nearest.ts';
import { relativeError } from '../support/reference.ts';
import { elementsOf, makeLayer, prepare } from './support.ts';

const device = await openDevice('cpu');
afterAll(() => device.dispose());

test.each([
  { method: roundTo8Bits, bytes: 34, error: 0.01 },
  { method: roundTo4Bits, bytes: 18, error: 0.12 },
])(
  '$method.name: all experts near the originals, in $bytes bytes a block',
  async ({ method, bytes, error }) => {
    const layer = await makeLayer(device, 1, { n: 40, m: 64 });
    const { block, expertBytes, expertParameters, dispose } = await (
      await prepare(method, layer, 0.5)
    ).compress(layer.layer);
    const original = await elementsOf(layer.layer.block.experts as DenseExperts);
    const reached = relativeError(await elementsOf(block.experts as DenseExperts), original);
    expect(reached).toBeLessThan(error);
    expect(reached).toBeGreaterThan(error / 10);
    expect(expertParameters).toBe(original.length);
    // Rows of 40 take two blocks, rows of 64 too.
    expect(expertBytes).toBe(6 * (64 + 64 + 40) * 2 * bytes);
    dispose();
  },
);
