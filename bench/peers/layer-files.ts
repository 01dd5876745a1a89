import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { makeRoute } from '../../lib/bench/batches.ts';
import { pool, values } from '../../lib/bench/data.ts';
import { seeds } from '../../lib/bench/layers.ts';
import { denseReference } from '../../lib/bench/reference.ts';
import type { LayerTask } from './layer-task.ts';

/**
 * Runs with a folder of what a peer in another language needs: the pools of which it cuts its weights as lib/bench/data.ts
 * does, x [T, n], ids and weights [T, K], and `wanted`: y of the first and the last token, by the f64 reference.
 */
export async function withLayerFiles<Result>(
  task: LayerTask,
  run: (folder: string) => Promise<Result>,
): Promise<Result> {
  const { cell, tokens } = task;
  const { n, m } = cell;
  const route = makeRoute(tokens, cell, task.routeSeed, task.distribution);
  const x = values('f32', seeds.input, tokens * n);
  const wanted = [...new Set([0, tokens - 1])].map((token) =>
    Float32Array.from(denseReference(cell, task.dtype, x.subarray(token * n, (token + 1) * n), route, token)),
  );
  const folder = mkdtempSync(join(tmpdir(), 'molae-bench-'));
  try {
    writeFileSync(join(folder, 'pool-n'), bytes(pool('f32', 1 / Math.sqrt(n))));
    writeFileSync(join(folder, 'pool-m'), bytes(pool('f32', 1 / Math.sqrt(m))));
    writeFileSync(join(folder, 'x'), bytes(x));
    writeFileSync(join(folder, 'ids'), bytes(route.ids));
    writeFileSync(join(folder, 'weights'), bytes(route.weights));
    writeFileSync(join(folder, 'wanted'), Buffer.concat(wanted.map(bytes)));
    return await run(folder);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

function bytes(array: Float32Array | Int32Array): Buffer {
  return Buffer.from(array.buffer, array.byteOffset, array.byteLength);
}
