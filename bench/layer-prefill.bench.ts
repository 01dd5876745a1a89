import {
  type Distribution,
  layerStages,
  makeBatch,
  makeRoute,
  totalWork,
  type Work,
} from '../lib/bench/batches.ts';
import {
  CELLS,
  describeLayer,
  LAYER_KINDS,
  type LayerCell,
  type LayerKind,
  scaleDown,
} from '../lib/bench/cells.ts';
import { denseLayer, type LayerDType, latentLayer } from '../lib/bench/layers.ts';
import { checkLayer } from '../lib/bench/reference.ts';
import type { Effort, Stats } from '../lib/bench/timing.ts';
import type { Timing } from '../lib/bench/yardstick.ts';
import type { DenseExperts, LatentExperts } from '../lib/experts.ts';
import { LAYER_PEER_GOALS, type LayerPeer, startLayerPeers } from './peers/layer-peers.ts';
import { quickCells } from './support/cells.ts';
import { type Context, type Goal, goal, type Question } from './support/context.ts';
import type { PeerResult, Peers } from './support/peers.ts';

const ROUTE_SEED = 11;
const LARGE_BATCH = 4096;
const MOST_EXPERTS = 32;

interface Task {
  readonly cell: LayerCell;
  readonly tokens: readonly number[];
  readonly dtypes: readonly LayerDType[];
  readonly distribution: Distribution;
  /** For batches of which numbers of tokens peers are asked. */
  readonly peers: readonly number[];
}

async function measure(context: Context, task: Task): Promise<void> {
  // The same layer's f32 rates by name and T, as shares of the FMA peak, for the goal of bf16 against f32.
  const f32 = new Map<string, number>();
  for (const dtype of task.dtypes) await measureDType(context, task, dtype, f32);
}

async function measureDType(
  context: Context,
  task: Task,
  dtype: LayerDType,
  f32: Map<string, number>,
): Promise<void> {
  using dense = denseLayer(context.device, task.cell, dtype);
  using latent = latentLayer(context.device, task.cell, dtype);
  for (const experts of [dense, latent]) await experts.pack({ release: true });
  for (const tokens of task.tokens) {
    const timed = await timeBatch(context, task, { dense, latent }, dtype, tokens);
    for (const kind of LAYER_KINDS) addRow(context, task, timed, kind, f32);
  }
}

/** The same batch through the dense and the latent layer, and the dense one of each peer that was asked. */
interface Timed {
  readonly dtype: LayerDType;
  readonly tokens: number;
  readonly errors: Readonly<Record<LayerKind, number>>;
  readonly timings: Readonly<Record<LayerKind, Timing>>;
  readonly peers: Readonly<Record<string, PeerResult>>;
  readonly stages: Readonly<Record<LayerKind, readonly Work[]>>;
}

async function timeBatch(
  context: Context,
  task: Task,
  layers: { readonly dense: DenseExperts; readonly latent: LatentExperts },
  dtype: LayerDType,
  tokens: number,
): Promise<Timed> {
  const { cell, distribution } = task;
  const batch = makeBatch(context.device, cell, tokens, makeRoute(tokens, cell, ROUTE_SEED, distribution));
  const { x, routing, out } = batch;
  const errors = {
    dense: await checkLayer(layers.dense, cell, dtype, batch),
    latent: await checkLayer(layers.latent, cell, dtype, batch),
  };
  using peers = await startPeers(context, task, dtype, tokens);
  const timings: Record<string, Timing> = await context.timeTogether(
    {
      dense: () => layers.dense.forward(x, routing, { out }),
      latent: () => layers.latent.forward(x, routing, { out }),
      ...peers?.calls,
    },
    effortFor(context, tokens),
  );
  batch.dispose();
  const timing = (name: string) => timings[name] as Timing;
  return {
    dtype,
    tokens,
    errors,
    timings: { dense: timing('dense'), latent: timing('latent') },
    peers: peers?.results((name) => timing(name).stats) ?? {},
    stages: {
      dense: layerStages('dense', cell, dtype, batch),
      latent: layerStages('latent', cell, dtype, batch),
    },
  };
}

/** Large batches take seconds, and vary little. */
function effortFor({ effort }: Context, tokens: number): Effort {
  return tokens < LARGE_BATCH ? effort : { ...effort, minSamples: 3 };
}

/** Undefined where none is asked for. */
async function startPeers(
  context: Context,
  { cell, distribution, peers }: Task,
  dtype: LayerDType,
  tokens: number,
): Promise<Peers<LayerPeer> | undefined> {
  if (!context.wantsPeers || !peers.includes(tokens)) return undefined;
  const { threads } = context;
  return startLayerPeers({ cell, dtype, tokens, routeSeed: ROUTE_SEED, distribution, threads, layers: 1 });
}

function addRow(
  context: Context,
  { cell, distribution }: Task,
  { dtype, tokens, errors, timings, peers, stages }: Timed,
  kind: LayerKind,
  f32: Map<string, number>,
): void {
  const work = { dense: totalWork(stages.dense), latent: totalWork(stages.latent) };
  const predictedGain = leastTime(work.dense, timings.dense) / leastTime(work.latent, timings.latent);
  const gain = timings.dense.stats.medianMs / timings.latent.stats.medianMs;
  const timing = timings[kind];
  const least = stages[kind].reduce((sum, stage) => sum + leastTime(stage, timing), 0);
  const ofStages = least / (1e6 * timing.stats.medianMs);
  const rowsPerExpert = (tokens * cell.K) / cell.N;
  const rate = work[kind].flops / timing.stats.medianMs / 1e6 / timing.ceilings.fmaGflops;
  const key = `${kind} ${tokens}`;
  if (dtype === 'f32') f32.set(key, rate);
  const f32Rate = f32.get(key);
  context.add({
    name: `layer ${kind}`,
    shape: `${describeLayer(kind, cell)}${distribution === 'zipf' ? ', zipf' : ''}`,
    tokens,
    dtype,
    timing,
    ...work[kind],
    relativeError: errors[kind],
    peers: kind === 'dense' ? peers : { 'our dense': timings.dense.stats },
    data: {
      model: cell.model,
      kind,
      ...sizes(cell),
      distribution,
      rowsPerExpert,
      predictedGain,
      gain,
      ofStages,
    },
    goals: ({ ofCeiling, ofSgemm }) => [
      dtype === 'f32' && rowsPerExpert >= 128
        ? goal('of sgemm', ofSgemm ?? 0, 0.95, 1.05)
        : goal('of roofline', ofCeiling ?? 0, 0.8, 0.9),
      ...(dtype === 'bf16' && f32Rate ? [goal('of f32 rate', rate / f32Rate, 0.85, 0.95)] : []),
      ...(kind === 'latent' ? [goal('of predicted gain', gain / predictedGain, 0.8, 0.9)] : []),
      ...(kind === 'dense' ? againstPeers(timings.dense.stats, peers) : []),
    ],
  });
}

/** What the work needs at least, in nanoseconds. */
function leastTime({ flops, bytes }: Work, { ceilings }: Timing): number {
  return Math.max(flops / ceilings.fmaGflops, bytes / ceilings.readGBps);
}

function againstPeers(ours: Stats, peers: Readonly<Record<string, PeerResult>>): Goal[] {
  return Object.entries(peers).flatMap(([name, peer]) => {
    if ('absent' in peer) return [];
    return [goal(`against ${name}`, peer.medianMs / ours.medianMs, ...LAYER_PEER_GOALS[name as LayerPeer])];
  });
}

function sizes({ n, m, N, K, k, r, fullN }: LayerCell) {
  return { n, m, N, K, k, r, fullN };
}

export const question: Question = {
  name: 'layer-prefill',
  asks: 'How close do dense and latent layers come to the machine, on batches?',
  minutes: { full: 21, quick: 3 },
  async run(context) {
    const uniform = { distribution: 'uniform', dtypes: ['f32', 'bf16'], peers: [] } as const;
    if (context.quick) {
      for (const [i, cell] of quickCells().entries()) {
        const small = scaleDown(cell, 16);
        const task = { ...uniform, cell: small, tokens: [512] };
        await measure(
          context,
          i === 0 ? { ...task, tokens: [16, 512], peers: [16, 512] } : { ...task, dtypes: ['f32'] },
        );
        if (i === 1) await measure(context, { ...task, dtypes: ['f32'], distribution: 'zipf', peers: [512] });
      }
      return;
    }
    for (const [i, cell] of CELLS.entries()) {
      const first = CELLS.findIndex(({ model }) => model === cell.model) === i;
      // All experts: how many rows each of them has decides what bounds small batches.
      if (first) await measure(context, { ...uniform, cell, tokens: [16, 64] });
      // Peers hold a layer several times over, and one of them no more than 2 GB of it: hence at most 32 experts.
      const small = scaleDown(cell, MOST_EXPERTS);
      if (!first) {
        await measure(context, { ...uniform, cell: small, tokens: [512] });
      } else if (i === 0) {
        await measure(context, { ...uniform, cell: small, tokens: [512, 4096, 16384], peers: [512, 4096] });
      } else {
        await measure(context, { ...uniform, cell: small, tokens: [512, 4096], peers: [512] });
      }
    }
    for (const model of ['Qwen1.5-MoE', 'OLMoE']) {
      const cell = scaleDown(CELLS.find((one) => one.model === model) as LayerCell, MOST_EXPERTS);
      await measure(context, { cell, tokens: [512], dtypes: ['f32'], distribution: 'zipf', peers: [512] });
    }
  },
};
