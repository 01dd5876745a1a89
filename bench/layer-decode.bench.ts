import type { Batch } from '../lib/bench/batches.ts';
import {
  CELLS,
  describeLayer,
  LAYER_KINDS,
  type LayerCell,
  type LayerKind,
  scaleDown,
} from '../lib/bench/cells.ts';
import { COLD_BYTES, LayerRing, layersForPasses, routeSeed } from '../lib/bench/layer-speed.ts';
import type { LayerDType } from '../lib/bench/layers.ts';
import { checkLayer } from '../lib/bench/reference.ts';
import type { Timing } from '../lib/bench/yardstick.ts';
import { type LayerPeer, startLayerPeers } from './peers/layer-peers.ts';
import { quickCells } from './support/cells.ts';
import { type Context, goal, type Question } from './support/context.ts';
import type { Peers } from './support/peers.ts';

async function measure(
  context: Context,
  cell: LayerCell,
  dtype: LayerDType,
  wantsPeers: boolean,
): Promise<void> {
  const count = Math.min(context.quick ? 6 : 16, layersForPasses(cell, dtype, COLD_BYTES));
  using ring = await LayerRing.create(context.device, cell, dtype, count);
  for (const tokens of [1, 4]) {
    const batches = ring.batches(tokens);
    try {
      await measureBatches(context, ring, batches, wantsPeers && tokens === 1);
    } finally {
      for (const batch of batches) batch.dispose();
    }
  }
}

async function measureBatches(
  context: Context,
  ring: LayerRing,
  batches: readonly Batch[],
  wantsPeers: boolean,
): Promise<void> {
  const { cell, dtype, count } = ring;
  const errors = { dense: await check(ring, 'dense', batches), latent: await check(ring, 'latent', batches) };
  const tokens = (batches[0] as Batch).tokens;
  using peers = wantsPeers && context.wantsPeers ? await startPeers(context, ring, tokens) : undefined;
  const timings: Record<string, Timing> = await context.timeTogether({
    dense: () => pass(ring, 'dense', batches),
    latent: () => pass(ring, 'latent', batches),
    ...peers?.calls,
  });
  const layerTiming = (name: string) => perLayer(timings[name] as Timing, count);
  const layers = { dense: layerTiming('dense'), latent: layerTiming('latent') };
  const work = { dense: ring.averageWork('dense', batches), latent: ring.averageWork('latent', batches) };
  const least = (kind: LayerKind) => work[kind].bytes / layers[kind].ceilings.readGBps;
  const predictedGain = least('dense') / least('latent');
  const gain = layers.dense.stats.medianMs / layers.latent.stats.medianMs;
  const results = peers?.results((name) => layerTiming(name).stats) ?? {};
  for (const kind of LAYER_KINDS) {
    context.add({
      name: `decode ${kind}`,
      shape: `${describeLayer(kind, cell)}, ${count} layers`,
      tokens,
      dtype,
      timing: layers[kind],
      ...work[kind],
      relativeError: errors[kind],
      peers: kind === 'dense' ? results : { 'our dense': layers.dense.stats },
      data: { kind, ...cell, distribution: 'uniform', predictedGain, gain, layers: count },
      goals: ({ ofRead }) => [
        goal('of read bandwidth', ofRead ?? 0, 0.85, 0.92),
        ...(kind === 'latent' ? [goal('of predicted gain', gain / predictedGain, 0.8, 0.9)] : []),
      ],
    });
  }
}

/** The larger relative error of the first two layers. */
async function check(ring: LayerRing, kind: LayerKind, batches: readonly Batch[]): Promise<number> {
  let worst = 0;
  for (const [layer, experts] of ring[kind].slice(0, 2).entries()) {
    const error = await checkLayer(experts, ring.cell, ring.dtype, batches[layer] as Batch, layer);
    worst = Math.max(worst, error);
  }
  return worst;
}

/** One call is a pass over all layers, as for one token of a model. */
function pass(ring: LayerRing, kind: LayerKind, batches: readonly Batch[]): void {
  for (const [layer, experts] of ring[kind].entries()) {
    const { x, routing, out } = batches[layer] as Batch;
    experts.forwardSync(x, routing, { out });
  }
}

function perLayer({ stats: { samples, ...times }, ceilings }: Timing, count: number): Timing {
  const each = Object.fromEntries(Object.entries(times).map(([name, ms]) => [name, ms / count]));
  return { stats: { ...(each as typeof times), samples }, ceilings };
}

/** As many layers of a peer as of ours: their weights stay in no cache either. */
function startPeers(
  { threads }: Context,
  { cell, dtype, count }: LayerRing,
  tokens: number,
): Promise<Peers<LayerPeer>> {
  const distribution = 'uniform';
  return startLayerPeers({
    cell,
    dtype,
    tokens,
    routeSeed: routeSeed(0),
    distribution,
    threads,
    layers: count,
  });
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
