import {
  type Batch,
  denseWork,
  latentWork,
  makeBatch,
  makeRoute,
  touchedBy,
  type Work,
} from '../lib/bench/batches.ts';
import { CELLS, describeCell, type LayerCell, quickCells, scaleDown } from '../lib/bench/cells.ts';
import { COLD_BYTES } from '../lib/bench/layer-speed.ts';
import { denseLayer, type LayerDType, latentLayer } from '../lib/bench/layers.ts';
import { checkLayer } from '../lib/bench/reference.ts';
import type { DenseExperts, LatentExperts } from '../lib/experts.ts';
import { type Context, goal, type Question } from './support/context.ts';
import { type LayerTask, layerPeers, type PeerResult } from './support/peers.ts';

async function measure(
  context: Context,
  cell: LayerCell,
  dtype: LayerDType,
  wantsPeers: boolean,
): Promise<void> {
  const { device } = context;
  // Enough layers that what one token touches of all of them does not fit in a cache.
  const touched = touchedBy(makeRoute(1, cell, 100), 1, cell);
  const least = Math.min(denseWork(cell, dtype, touched).bytes, latentWork(cell, dtype, touched).bytes);
  const count = Math.max(2, Math.min(context.quick ? 6 : 16, Math.ceil(COLD_BYTES / least)));
  const layers = { dense: [] as DenseExperts[], latent: [] as LatentExperts[] };
  for (let layer = 0; layer < count; layer++) {
    const [dense, latent] = [denseLayer(device, cell, dtype, layer), latentLayer(device, cell, dtype, layer)];
    for (const experts of [dense, latent]) await experts.pack({ release: true });
    layers.dense.push(dense);
    layers.latent.push(latent);
  }
  for (const tokens of [1, 4]) {
    const routes = Array.from({ length: count }, (_, layer) => makeRoute(tokens, cell, 100 + layer));
    const batches = routes.map((route) => makeBatch(device, cell, tokens, route));
    const errors = { dense: 0, latent: 0 };
    for (const kind of ['dense', 'latent'] as const) {
      for (const [layer, experts] of layers[kind].slice(0, 2).entries()) {
        errors[kind] = Math.max(
          errors[kind],
          await checkLayer(experts, cell, dtype, batches[layer] as Batch, layer),
        );
      }
    }

    // One call is a pass over all layers, as for one token of a model.
    const pass = (kind: 'dense' | 'latent') => () => {
      for (const [layer, experts] of layers[kind].entries()) {
        const { x, routing, out } = batches[layer] as Batch;
        experts.forwardSync(x, routing, { out });
      }
    };
    const passes = await context.timeTogether({ dense: pass('dense'), latent: pass('latent') });
    for (const batch of batches) batch.dispose();

    const work = { dense: averageWork(denseWork), latent: averageWork(latentWork) };
    function averageWork(of: typeof denseWork): Work {
      const all = routes.map((route) => of(cell, dtype, touchedBy(route, tokens, cell)));
      const mean = (name: keyof Work) => all.reduce((sum, one) => sum + one[name], 0) / count;
      return { flops: mean('flops'), bytes: mean('bytes') };
    }
    const predictedGain = work.dense.bytes / work.latent.bytes;
    const gain = passes.dense.medianMs / passes.latent.medianMs;
    const peerTask: LayerTask = {
      cell,
      dtype,
      tokens,
      routeSeed: 100,
      distribution: 'uniform',
      threads: context.threads,
      effort: context.effort,
    };
    // A peer has one layer, which may stay in the caches.
    const warm: Record<string, PeerResult> =
      wantsPeers && context.wantsPeers && tokens === 1 ? await layerPeers(peerTask) : {};
    const peers = Object.fromEntries(Object.entries(warm).map(([name, peer]) => [`${name} (warm)`, peer]));
    for (const kind of ['dense', 'latent'] as const) {
      const { samples, ...times } = passes[kind];
      const perLayer = Object.fromEntries(Object.entries(times).map(([name, ms]) => [name, ms / count]));
      const stats = { ...(perLayer as typeof times), samples };
      const denseMs = { ...stats, medianMs: passes.dense.medianMs / count };
      context.add({
        name: `decode ${kind}`,
        shape: `${describeCell(cell)}${kind === 'latent' ? ` k${cell.k} r${cell.r}` : ''}, ${count} layers`,
        tokens,
        dtype,
        stats,
        ...work[kind],
        relativeError: errors[kind],
        peers: kind === 'dense' ? peers : { 'our dense': denseMs },
        data: { kind, ...cell, distribution: 'uniform', predictedGain, gain, layers: count },
        goals: ({ ofRead }) => [
          goal('of read bandwidth', ofRead ?? 0, 0.85, 0.92),
          ...(kind === 'latent' ? [goal('of predicted gain', gain / predictedGain, 0.8, 0.9)] : []),
        ],
      });
    }
  }
  for (const experts of [...layers.dense, ...layers.latent]) experts.dispose();
}

export const question: Question = {
  name: 'layer-decode',
  asks: 'Do one to four tokens run at the speed of memory?',
  minutes: { full: 9, quick: 2 },
  async run(context) {
    if (context.quick) {
      for (const [i, cell] of quickCells().entries()) {
        for (const dtype of (i === 0 ? ['f32', 'bf16'] : ['f32']) as LayerDType[]) {
          await measure(context, scaleDown(cell, 16), dtype, i === 0);
        }
      }
      return;
    }
    // Many layers are held at once, so fewer experts each; the number touched by a token stays.
    const first = quickCells();
    for (const cell of CELLS) {
      for (const dtype of ['f32', 'bf16'] as const) {
        await measure(context, scaleDown(cell, cell.k === cell.N ? 32 : 16), dtype, first.includes(cell));
      }
    }
  },
};
