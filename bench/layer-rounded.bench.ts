import { type Batch, layerWork, makeBatch, makeRoute } from '../lib/bench/batches.ts';
import {
  CELLS,
  describeLayer,
  LAYER_KINDS,
  type LayerCell,
  type LayerKind,
  scaleDown,
} from '../lib/bench/cells.ts';
import { checkClose } from '../lib/bench/check.ts';
import { denseLayer, latentLayer } from '../lib/bench/layers.ts';
import { checkLayer } from '../lib/bench/reference.ts';
import type { Timing } from '../lib/bench/yardstick.ts';
import type { DenseExperts, LatentExperts } from '../lib/experts.ts';
import { LAYER_PEER_GOALS, type LayerPeer, startLayerPeers } from './peers/layer-peers.ts';
import { quickCells } from './support/cells.ts';
import { type Context, goal, type Question } from './support/context.ts';
import type { PeerResult } from './support/peers.ts';

const ROUTE_SEED = 11;
const MOST_EXPERTS = 32;

/** What rounding may change: each product's inputs by 2⁻⁹ at most. */
const ROUNDING = 1e-2;

const INPUTS = ['f32', 'bf16'] as const;
type Inputs = (typeof INPUTS)[number];
type Layers = Readonly<Record<LayerKind, Readonly<Record<Inputs, DenseExperts | LatentExperts>>>>;

/** The same bf16 layers with inputs as they are and rounded, in turns, and PyTorch's, which rounds them too. */
async function measure(context: Context, cell: LayerCell, tokens: readonly number[]): Promise<void> {
  const layers = await packedLayers(context, cell);
  try {
    for (const count of tokens) await measureBatch(context, cell, layers, count);
  } finally {
    for (const kind of LAYER_KINDS) for (const inputs of INPUTS) layers[kind][inputs].dispose();
  }
}

async function packedLayers({ device }: Context, cell: LayerCell): Promise<Layers> {
  const make = { dense: denseLayer, latent: latentLayer };
  const packed = async (kind: LayerKind, inputs: Inputs) => {
    const experts = make[kind](device, cell, 'bf16');
    await experts.pack({ release: true, inputs });
    return experts;
  };
  return {
    dense: { f32: await packed('dense', 'f32'), bf16: await packed('dense', 'bf16') },
    latent: { f32: await packed('latent', 'f32'), bf16: await packed('latent', 'bf16') },
  };
}

async function measureBatch(
  context: Context,
  cell: LayerCell,
  layers: Layers,
  tokens: number,
): Promise<void> {
  const batch = makeBatch(context.device, cell, tokens, makeRoute(tokens, cell, ROUTE_SEED));
  const errors = {
    dense: await checkRounded(layers.dense, cell, batch),
    latent: await checkRounded(layers.latent, cell, batch),
  };
  const { x, routing, out } = batch;
  const call = (kind: LayerKind, inputs: Inputs) => () => layers[kind][inputs].forward(x, routing, { out });
  const { threads } = context;
  using peers = context.wantsPeers
    ? await startLayerPeers({
        ...{
          cell,
          dtype: 'bf16',
          tokens,
          routeSeed: ROUTE_SEED,
          distribution: 'uniform',
          threads,
          layers: 1,
        },
      })
    : undefined;
  const timings: Record<string, Timing> = await context.timeTogether({
    dense: call('dense', 'bf16'),
    latent: call('latent', 'bf16'),
    'dense f32': call('dense', 'f32'),
    'latent f32': call('latent', 'f32'),
    ...peers?.calls,
  });
  const timing = (name: string) => timings[name] as Timing;
  for (const kind of LAYER_KINDS) {
    const theirs: Readonly<Record<string, PeerResult>> =
      kind === 'dense' ? (peers?.results((name) => timing(name).stats) ?? {}) : {};
    context.add({
      name: `layer ${kind}, bf16 inputs`,
      shape: describeLayer(kind, cell),
      tokens,
      dtype: 'bf16',
      timing: timing(kind),
      ...layerWork(kind, cell, 'bf16', batch),
      relativeError: errors[kind],
      peers: { 'f32 inputs': timing(`${kind} f32`).stats, ...theirs },
      data: { model: cell.model, kind, rowsPerExpert: (tokens * cell.K) / cell.N },
      goals: () =>
        Object.entries(theirs).flatMap(([name, peer]) =>
          'absent' in peer
            ? []
            : [
                goal(
                  `against ${name}`,
                  peer.medianMs / timing(kind).stats.medianMs,
                  ...LAYER_PEER_GOALS[name as LayerPeer],
                ),
              ],
        ),
    });
  }
  batch.dispose();
}

/** The layer with f32 inputs against f64, and the other one against it. Returns what rounding changed. */
async function checkRounded(
  { f32, bf16 }: Layers[LayerKind],
  cell: LayerCell,
  batch: Batch,
): Promise<number> {
  await checkLayer(f32, cell, 'bf16', batch);
  using exact = await f32.forward(batch.x, batch.routing);
  using rounded = await bf16.forward(batch.x, batch.routing);
  return checkClose('bf16 inputs', await rounded.toFloat32(), await exact.toFloat32(), ROUNDING);
}

export const question: Question = {
  name: 'layer-rounded',
  asks: 'What do inputs rounded to bf16 gain, against f32 ones and PyTorch, which rounds them too?',
  minutes: { full: 6, quick: 1 },
  async run(context) {
    if (context.quick) {
      await measure(context, scaleDown(quickCells()[0] as LayerCell, 16), [512]);
      return;
    }
    for (const [model, tokens] of [
      ['Qwen1.5-MoE', [1, 4, 16, 64, 512, 4096]],
      ['OLMoE', [64, 512]],
    ] as const) {
      const cell = CELLS.find((one) => one.model === model) as LayerCell;
      await measure(context, scaleDown(cell, MOST_EXPERTS), tokens);
    }
  },
};
