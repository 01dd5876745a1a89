import type { Batch } from '../../lib/bench/batches.ts';
import type { LayerKind } from '../../lib/bench/cells.ts';
import { COLD_BYTES, LayerRing, layersForPasses } from '../../lib/bench/layer-speed.ts';
import { checkLayer } from '../../lib/bench/reference.ts';
import { statistics } from '../../lib/bench/timing.ts';
import { openDevice } from '../../lib/device.ts';
import type { DenseExperts, LatentExperts } from '../../lib/experts.ts';
import type { Answer, Ask, Layers } from './build.ts';
import type { Turn } from './turns.ts';

/** The side of `Build` that has the addon. */
async function main({ cell, dtype, threads }: Layers): Promise<void> {
  const device = await openDevice('cpu', { threads });
  const ring = await LayerRing.create(device, cell, dtype, layersForPasses(cell, dtype, COLD_BYTES));
  const known = new Map<string, readonly Batch[]>();

  async function turn({ kind, tokens, seconds }: Ask): Promise<Turn> {
    const key = `${kind} ${tokens}`;
    const batches = known.get(key) ?? ring.batches(tokens);
    if (!known.has(key)) {
      const experts = ring[kind][0] as DenseExperts | LatentExperts;
      await checkLayer(experts, cell, dtype, batches[0] as Batch);
      known.set(key, batches);
    }
    return { ms: timePasses(ring, kind, batches, seconds), work: ring.averageWork(kind, batches) };
  }

  process.on('message', (ask: Ask) => answer(() => turn(ask)));
  reply({ ready: true });
}

/** What a batch takes on average, each through the next layer so that caches are cold: of the median pass over all layers. */
function timePasses(ring: LayerRing, kind: LayerKind, batches: readonly Batch[], seconds: number): number {
  const pass = () => {
    const begin = performance.now();
    for (const [layer, experts] of ring[kind].entries()) {
      const { x, routing, out } = batches[layer] as Batch;
      experts.forwardSync(x, routing, { out });
    }
    return (performance.now() - begin) / ring.count;
  };
  pass();
  const times: number[] = [];
  const end = performance.now() + 1000 * seconds;
  do times.push(pass());
  while (performance.now() < end);
  return statistics(times).medianMs;
}

function reply(message: Answer): void {
  process.send?.(message);
}

async function answer(work: () => Promise<Turn>): Promise<void> {
  try {
    reply(await work());
  } catch (error) {
    reply({ failed: (error as Error).message });
  }
}

try {
  await main(JSON.parse(process.argv[2] as string) as Layers);
} catch (error) {
  reply({ failed: (error as Error).message });
  process.exitCode = 1;
}
