import { type CalibrationOptions, calibrate } from './calibration.ts';
import type { Model } from './model.ts';
import { expertCounts } from './routing-statistics.ts';

/** How many tokens of a text reached the experts of a layer. */
export interface LayerCoverage {
  /** The decoder layer's index. */
  readonly layer: number;
  readonly fewestTokens: number;
  readonly medianTokens: number;
  /** Experts that no token reached. */
  readonly unusedExperts: readonly number[];
  /** Of each expert. */
  readonly expertTokens: readonly number[];
}

/** Takes a text through the model, and counts. */
export async function expertCoverage(
  model: Model,
  ids: ArrayLike<number>,
  options: CalibrationOptions = {},
): Promise<LayerCoverage[]> {
  const layers: LayerCoverage[] = [];
  await calibrate(
    model,
    ids,
    async ({ layer, routing }) => {
      layers.push(layerCoverage(layer, await expertCounts(routing, model.checkpoint.spec.numExperts)));
      return undefined;
    },
    options,
  );
  return layers;
}

/** @internal Sums up the tokens of each expert. */
export function layerCoverage(layer: number, counts: ArrayLike<number>): LayerCoverage {
  const expertTokens = Array.from(counts);
  return {
    layer,
    ...fewestAndMedian(expertTokens),
    unusedExperts: expertTokens.flatMap((count, expert) => (count === 0 ? [expert] : [])),
    expertTokens,
  };
}

/** @internal Of an even number of counts, the larger of the two in the middle. */
export function fewestAndMedian(counts: readonly number[]) {
  const sorted = [...counts].sort((a, b) => a - b);
  return { fewestTokens: sorted[0] ?? 0, medianTokens: sorted[Math.floor(sorted.length / 2)] ?? 0 };
}
