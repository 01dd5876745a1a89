// The side of `Build` that has the addon. Argument: the Layers that it holds, as JSON.
import { createInterface } from 'node:readline';
import type { Batch } from '../../lib/bench/batches.ts';
import type { LayerKind } from '../../lib/bench/cells.ts';
import { COLD_BYTES, LayerRing, layersForPasses } from '../../lib/bench/layer-speed.ts';
import { checkLayer } from '../../lib/bench/reference.ts';
import { statistics } from '../../lib/bench/timing.ts';
import { openDevice } from '../../lib/device.ts';
import type { DenseExperts, LatentExperts } from '../../lib/experts.ts';
import type { Failed } from '../support/turn-process.ts';
import type { Ask, Layers, Ready } from './build.ts';
import type { Turn } from './turns.ts';

/** Turns of one process: the layers that it holds, and the batches of every number of tokens that was asked for. */
class Turns {
  readonly #layers: Layers;
  readonly #ring: LayerRing;
  readonly #batches = new Map<string, readonly Batch[]>();

  constructor(layers: Layers, ring: LayerRing) {
    this.#layers = layers;
    this.#ring = ring;
  }

  async take({ kind, tokens, seconds }: Ask): Promise<Turn> {
    const batches = await this.#checkedBatches(kind, tokens);
    return {
      ms: timePasses(this.#ring, kind, batches, seconds),
      work: this.#ring.averageWork(kind, batches),
    };
  }

  /** Throws a WrongResult where the first of them comes out otherwise than in f64. */
  async #checkedBatches(kind: LayerKind, tokens: number): Promise<readonly Batch[]> {
    const key = `${kind} ${tokens}`;
    const known = this.#batches.get(key);
    if (known) return known;
    const batches = this.#ring.batches(tokens);
    const experts = this.#ring[kind][0] as DenseExperts | LatentExperts;
    await checkLayer(experts, this.#layers.cell, this.#layers.dtype, batches[0] as Batch);
    this.#batches.set(key, batches);
    return batches;
  }
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

function answer(line: Ready | Turn | Failed): void {
  process.stdout.write(`${JSON.stringify(line)}\n`);
}

async function main(layers: Layers): Promise<void> {
  const { cell, dtype, threads } = layers;
  const device = await openDevice('cpu', { threads });
  const ring = await LayerRing.create(device, cell, dtype, layersForPasses(cell, dtype, COLD_BYTES));
  const turns = new Turns(layers, ring);
  answer({ device: device.info.name });
  for await (const line of createInterface({ input: process.stdin })) {
    answer(await turns.take(JSON.parse(line) as Ask));
  }
}

try {
  await main(JSON.parse(process.argv[2] as string) as Layers);
} catch (error) {
  answer({ failed: (error as Error).message });
  process.exitCode = 1;
}
