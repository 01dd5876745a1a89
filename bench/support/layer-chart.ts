import type { Chart, Series } from '../../lib/chart.ts';

/** A batch through a layer. */
interface TimedBatch {
  readonly tokens: number;
  readonly medianMs: number;
}

/** Points (tokens, tokens a second), by tokens. */
export function tokensPerSecond(batches: readonly TimedBatch[]): Series['points'] {
  return batches
    .map(({ tokens, medianMs }) => [tokens, (1000 * tokens) / medianMs] as const)
    .sort((a, b) => a[0] - b[0]);
}

/** How fast layers are over the size of the batch. `caches` says what state they are in. */
export function tokensPerSecondChart(title: string, caches: string, series: readonly Series[]): Chart {
  return {
    title,
    x: {
      label: `tokens in the batch (${caches})`,
      log: true,
      ticks: [1, 4, 16, 64, 512, 4096, 16384],
    },
    y: { label: 'tokens / s', log: true },
    series,
  };
}

/** A solid line with circles, or a dashed one with squares. */
export function lineStyle(solid: boolean): Required<Pick<Series, 'line' | 'marker'>> {
  return solid ? { line: 'solid', marker: 'circle' } : { line: 'dashed', marker: 'square' };
}
