import type { Distribution } from '../../lib/bench/batches.ts';
import type { LayerCell } from '../../lib/bench/cells.ts';
import type { LayerDType } from '../../lib/bench/layers.ts';

/** What a peer is asked for on one MoE layer: our data, our routing, our threads. */
export interface LayerTask {
  readonly cell: LayerCell;
  readonly dtype: LayerDType;
  readonly tokens: number;
  readonly routeSeed: number;
  readonly distribution: Distribution;
  readonly threads: number;
  /** How many layers with these weights to hold: a turn is a pass over all of them, so that several find caches cold. */
  readonly layers: number;
}
