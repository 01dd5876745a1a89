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
import { ggmlLayer, onnxruntimeLayer, type PeerResult } from './support/peers.ts';

const ROUTE_SEED = 11;

interface Task {
  readonly cell: LayerCell;
  readonly tokens: readonly number[];
  readonly dtypes: readonly LayerDType[];
  readonly distribution: Distribution;
  readonly peers: boolean;
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
  for (const tokens of batches) {
    const route = makeRoute(tokens, cell, ROUTE_SEED, distribution);
    const batch = makeBatch(device, cell, tokens, route);
    const { x, routing, out } = batch;
    const errors = {
      dense: await checkLayer(dense, cell, dtype, batch),
      latent: await checkLayer(latent, cell, dtype, batch),
    };
    const stats = await context.timeTogether({
      dense: () => dense.forward(x, routing, { out }),
      latent: () => latent.forward(x, routing, { out }),
    });
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
      threads: context.threads,
      effort: context.effort,
    };
    const peers: Record<string, PeerResult> =
      wantsPeers && context.wantsPeers && distribution === 'uniform'
        ? { onnxruntime: await onnxruntimeLayer(peerTask), 'llama.cpp': await ggmlLayer(peerTask) }
        : {};
    const goalNames: Record<string, [number, number]> = { onnxruntime: [1.3, 1.5], 'llama.cpp': [1.2, 1.5] };

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
            const bounds = goalNames[name];
            return 'absent' in peer || !bounds
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
  async run(context) {
    if (context.quick) {
      for (const [i, cell] of quickCells().entries()) {
        const small = scaleDown(cell, 16);
        await measure(context, {
          cell: small,
          tokens: i === 0 ? [16, 512] : [512],
          dtypes: i === 0 ? ['f32', 'bf16'] : ['f32'],
          distribution: 'uniform',
          peers: i === 0,
        });
      }
      return;
    }
    for (const [i, cell] of CELLS.entries()) {
      const first = CELLS.findIndex(({ model }) => model === cell.model) === i;
      await measure(context, {
        cell,
        tokens: first ? [16, 64, 512, 4096] : [512],
        dtypes: ['f32', 'bf16'],
        distribution: 'uniform',
        peers: first,
      });
    }
    for (const model of ['Qwen1.5-MoE', 'OLMoE']) {
      const cell = CELLS.find((candidate) => candidate.model === model) as LayerCell;
      await measure(context, { cell, tokens: [512], dtypes: ['f32'], distribution: 'zipf', peers: false });
    }
  },
};
