import { setImmediate } from 'node:timers/promises';
import type { Device } from '../device.ts';
import { throwIfAborted } from '../errors.ts';
import type { DenseExperts, LatentExperts } from '../experts.ts';
import { type Batch, layerWork, makeBatch, makeRoute, type Work } from './batches.ts';
import { describeLayer, LAYER_KINDS, type LayerCell, type LayerKind } from './cells.ts';
import { denseLayer, type LayerDType, latentLayer } from './layers.ts';
import { checkLayer } from './reference.ts';
import type { Measured } from './row.ts';
import type { Effort } from './timing.ts';
import type { Yardstick } from './yardstick.ts';

/** What is touched between two visits to the same layer: caches are cold, as they are while a model decodes. */
export const COLD_BYTES = 256e6;

/** Layers of one cell, dense and latent, enough of them that caches are cold when the first comes round again. */
export class LayerRing {
  readonly cell: LayerCell;
  readonly dtype: LayerDType;
  readonly device: Device;
  readonly dense: DenseExperts[] = [];
  readonly latent: LatentExperts[] = [];

  private constructor(device: Device, cell: LayerCell, dtype: LayerDType) {
    this.device = device;
    this.cell = cell;
    this.dtype = dtype;
  }

  static async create(
    device: Device,
    cell: LayerCell,
    dtype: LayerDType,
    count: number,
    signal?: AbortSignal,
  ): Promise<LayerRing> {
    const ring = new LayerRing(device, cell, dtype);
    try {
      for (let layer = 0; layer < count; layer++) {
        const [dense, latent] = [
          denseLayer(device, cell, dtype, layer),
          latentLayer(device, cell, dtype, layer),
        ];
        ring.dense.push(dense);
        ring.latent.push(latent);
        for (const experts of [dense, latent]) await experts.pack({ release: true, signal });
        await setImmediate(); // signals come in between
        throwIfAborted(signal);
      }
      return ring;
    } catch (error) {
      ring[Symbol.dispose]();
      throw error;
    }
  }

  get count(): number {
    return this.dense.length;
  }

  /** A batch for each layer, other tokens for each. */
  batches(tokens: number): Batch[] {
    const { cell, device } = this;
    return this.dense.map((_, layer) =>
      makeBatch(device, cell, tokens, makeRoute(tokens, cell, routeSeed(layer))),
    );
  }

  /** Of one batch through its layer, on average. */
  averageWork(kind: LayerKind, batches: readonly Batch[]): Work {
    const all = batches.map((batch) => layerWork(kind, this.cell, this.dtype, batch));
    const mean = (name: keyof Work) => all.reduce((sum, work) => sum + work[name], 0) / all.length;
    return { flops: mean('flops'), bytes: mean('bytes') };
  }

  [Symbol.dispose](): void {
    for (const experts of [...this.dense, ...this.latent]) experts.dispose();
  }
}

/** Of the tokens that the `layer`-th layer sees. */
export function routeSeed(layer: number): number {
  return 100 + layer;
}

/** What one token touches of a layer. */
export function tokenBytes(kind: LayerKind, cell: LayerCell, dtype: LayerDType): number {
  return layerWork(kind, cell, dtype, { route: makeRoute(1, cell, routeSeed(0)), tokens: 1 }).bytes;
}

/** How many layers of each kind a ring needs whose dense and latent layers take turns, so that each is evicted by both. */
export function layersForTurns(cell: LayerCell, dtype: LayerDType, coldBytes: number): number {
  const round = tokenBytes('dense', cell, dtype) + tokenBytes('latent', cell, dtype);
  return Math.max(2, Math.ceil(coldBytes / round));
}

/** How many layers of each kind a ring needs whose passes are over one kind: what a token touches of all of them is evicted. */
export function layersForPasses(cell: LayerCell, dtype: LayerDType, coldBytes: number): number {
  const least = Math.min(...LAYER_KINDS.map((kind) => tokenBytes(kind, cell, dtype)));
  return Math.max(2, Math.ceil(coldBytes / least));
}

/** Times a batch through the next dense and the next latent layer in turns, each layer with its own batch. */
export async function measureLayers(
  ring: LayerRing,
  tokens: number,
  effort: Effort,
  yardstick: Yardstick,
): Promise<Measured[]> {
  const { cell, dtype, count } = ring;
  const batches = ring.batches(tokens);
  try {
    for (const kind of LAYER_KINDS) {
      await checkLayer(ring[kind][0] as DenseExperts | LatentExperts, cell, dtype, batches[0] as Batch);
      throwIfAborted(effort.signal);
    }
    const timings = await yardstick.timeTogether({ dense: turn('dense'), latent: turn('latent') }, effort);
    return LAYER_KINDS.map((kind) => ({
      name: `layer ${kind}`,
      shape: describeLayer(kind, cell),
      tokens,
      dtype,
      timing: timings[kind],
      ...ring.averageWork(kind, batches),
    }));
  } finally {
    for (const batch of batches) batch.dispose();
  }

  /** One token runs on the calling thread, as in decoding; more of them through the queue. */
  function turn(kind: LayerKind): () => unknown {
    let next = 0;
    return () => {
      const layer = next++ % count;
      const experts = ring[kind][layer] as DenseExperts | LatentExperts;
      const { x, routing, out } = batches[layer] as Batch;
      return tokens === 1 ? experts.forwardSync(x, routing, { out }) : experts.forward(x, routing, { out });
    };
  }
}
