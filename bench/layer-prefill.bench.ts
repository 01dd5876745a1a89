import {
  type Distribution,
  denseWork,
  latentWork,
  makeBatch,
  makeRoute,
  touchedBy,
  type Work,
} from '../lib/bench/batches.ts';
import { CELLS, describeCell, type LayerCell, quickCells, scaleDown } from '../lib/bench/cells.ts';
import { denseLayer, type LayerDType, latentLayer } from '../lib/bench/layers.ts';
import { checkLayer } from '../lib/bench/reference.ts';
import { type Context, goal, type Question } from './support/context.ts';
import { LAYER_PEER_GOALS, type LayerPeer, layerPeers, type PeerResult } from './support/peers.ts';

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
  // The same layer's f32 rates by name and T, for the goal of bf16 against f32.
  const f32 = new Map<string, number>();
  for (const dtype of task.dtypes) await measureDType(context, task, dtype, f32);
}

async function measureDType(
  context: Context,
  { cell, tokens: batches, distribution, peers: wantsPeers }: Task,
  dtype: LayerDType,
  f32: Map<string, number>,
): Promise<void> {
  const { device } = context;
  using dense = denseLayer(device, cell, dtype);
  using latent = latentLayer(device, cell, dtype);
  for (const experts of [dense, latent]) await experts.pack({ release: true });
  for (const tokens of batches) {
    const route = makeRoute(tokens, cell, ROUTE_SEED, distribution);
    const batch = makeBatch(device, cell, tokens, route);
    const { x, routing, out } = batch;
    const errors = {
      dense: await checkLayer(dense, cell, dtype, batch),
      latent: await checkLayer(latent, cell, dtype, batch),
    };
    // Large batches take seconds, and vary little.
    const effort = tokens < LARGE_BATCH ? context.effort : { ...context.effort, minSamples: 3 };
    const stats = await context.timeTogether(
      {
        dense: () => dense.forward(x, routing, { out }),
        latent: () => latent.forward(x, routing, { out }),
      },
      effort,
    );
    batch.dispose();
    const touched = touchedBy(route, tokens, cell);
    const work = { dense: denseWork(cell, dtype, touched), latent: latentWork(cell, dtype, touched) };
    const { ceilings } = context;
    const least = ({ flops, bytes }: Work) => Math.max(flops / ceilings.fmaGflops, bytes / ceilings.readGBps);
    const predictedGain = least(work.dense) / least(work.latent);
    const gain = stats.dense.medianMs / stats.latent.medianMs;
    const rowsPerExpert = (tokens * cell.K) / cell.N;
    const peerTask = {
      cell,
      dtype,
      tokens,
      routeSeed: ROUTE_SEED,
      distribution,
      threads: context.threads,
      effort,
    };
    const peers: Record<string, PeerResult> =
      context.wantsPeers && wantsPeers.includes(tokens) ? await layerPeers(peerTask) : {};

    for (const kind of ['dense', 'latent'] as const) {
      const speedups = kind === 'dense' ? Object.entries(peers) : [];
      const rate = work[kind].flops / stats[kind].medianMs;
      const key = `${kind} ${tokens}`;
      if (dtype === 'f32') f32.set(key, rate);
      const f32Rate = f32.get(key);
      const zipf = distribution === 'zipf' ? ', zipf' : '';
      context.add({
        name: `layer ${kind}`,
        shape: `${describeCell(cell)}${kind === 'latent' ? ` k${cell.k} r${cell.r}` : ''}${zipf}`,
        tokens,
        dtype,
        stats: stats[kind],
        ...work[kind],
        relativeError: errors[kind],
        peers: kind === 'dense' ? peers : { 'our dense': stats.dense },
        data: { model: cell.model, kind, ...sizes(cell), distribution, rowsPerExpert, predictedGain, gain },
        goals: ({ ofCeiling, ofSgemm }) => [
          dtype === 'f32' && rowsPerExpert >= 128
            ? goal('of sgemm', ofSgemm ?? 0, 0.95, 1.05)
            : goal('of roofline', ofCeiling ?? 0, 0.8, 0.9),
          ...(dtype === 'bf16' && f32Rate ? [goal('of f32 rate', rate / f32Rate, 0.85, 0.95)] : []),
          ...(kind === 'latent' ? [goal('of predicted gain', gain / predictedGain, 0.8, 0.9)] : []),
          ...speedups.flatMap(([name, peer]) => {
            const bounds = LAYER_PEER_GOALS[name as LayerPeer];
            return 'absent' in peer
              ? []
              : [goal(`against ${name}`, peer.medianMs / stats.dense.medianMs, ...bounds)];
          }),
        ],
      });
    }
  }
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
    // Peers hold a layer several times over, and one of them no more than 2 GB of it: hence at most 32 experts.
    for (const [i, cell] of CELLS.entries()) {
      const first = CELLS.findIndex(({ model }) => model === cell.model) === i;
      const small = scaleDown(cell, MOST_EXPERTS);
      if (!first) {
        await measure(context, { ...uniform, cell: small, tokens: [512] });
      } else if (i === 0) {
        const tokens = [16, 64, 512, 4096, 16384];
        await measure(context, { ...uniform, cell: small, tokens, peers: [512, 4096] });
      } else {
        await measure(context, { ...uniform, cell: small, tokens: [16, 64, 512, 4096], peers: [512] });
      }
    }
    for (const model of ['Qwen1.5-MoE', 'OLMoE']) {
      const cell = scaleDown(CELLS.find((one) => one.model === model) as LayerCell, MOST_EXPERTS);
      await measure(context, { cell, tokens: [512], dtypes: ['f32'], distribution: 'zipf', peers: [512] });
    }
  },
};
