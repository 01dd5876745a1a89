import type { Device } from '../device.ts';
import { makeBatch, makeRoute } from './batches.ts';
import type { LayerCell } from './cells.ts';
import { denseLayer } from './layers.ts';
import type { Measured } from './row.ts';
import { type Call, timeEachCall } from './timing.ts';
import type { Yardstick } from './yardstick.ts';

/** A layer whose work, if there were any, would not count. */
export const TINY_CELL: LayerCell = { model: 'tiny', n: 64, m: 32, N: 8, K: 2, k: 4, r: 16, fullN: 8 };

/** Times `count` calls with no tokens, one by one: what the way from JavaScript and back costs. */
export async function measureCalls(device: Device, count: number, yardstick: Yardstick): Promise<Measured[]> {
  using layer = denseLayer(device, TINY_CELL, 'f32');
  const batch = makeBatch(device, TINY_CELL, 0, makeRoute(0, TINY_CELL, 1));
  const { x, routing, out } = batch;
  const calls: Record<string, Call> = {
    forwardSync: () => layer.forwardSync(x, routing, { out }),
    forward: () => layer.forward(x, routing, { out }),
  };
  try {
    const rows: Measured[] = [];
    for (const [name, call] of Object.entries(calls)) {
      const timing = await yardstick.around(() => timeEachCall(call, count));
      rows.push({ name, shape: 'a call without tokens', tokens: 0, dtype: 'f32', timing });
    }
    return rows;
  } finally {
    batch.dispose();
  }
}
