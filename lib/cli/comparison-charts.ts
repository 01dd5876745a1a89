import { type Chart, COLORS, type Series } from '../chart.ts';
import type { ComparisonRow } from '../methods/compare.ts';
import { percent } from './table.ts';

/** What perplexity grew by, relative to the model as it is. */
export function increase(row: ComparisonRow, dense: ComparisonRow): number {
  return row.perplexity / dense.perplexity - 1;
}

/** Charts of a comparison by name; none where there is nothing to compare with. The first row is the model as it is. */
export function comparisonCharts(rows: readonly ComparisonRow[]): [string, Chart][] {
  const [dense, ...others] = rows as [ComparisonRow, ...ComparisonRow[]];
  if (others.length === 0) return [];
  const sweep = groupSizeSweep(others, dense);
  const charts: [string, Chart][] = [
    ['parameters', overParameters(others, dense)],
    ['bytes', overBytes(others, dense)],
    ...(sweep ? [['group-size', sweep] as [string, Chart]] : []),
  ];
  return charts.map(([name, chart]) => [name, withFloorExplained(chart)]);
}

/** A logarithmic axis has no place for a model that lost nothing, or got better: it is at the lower end. */
const FLOOR_PERCENT = 0.01;

function y(row: ComparisonRow, dense: ComparisonRow): number {
  return 100 * increase(row, dense);
}

const Y_AXIS = { label: 'perplexity above dense, %', log: true, floor: FLOOR_PERCENT } as const;

function withFloorExplained(chart: Chart): Chart {
  const isHollow = chart.series.some(({ points }) => points.some(([, value]) => value <= FLOOR_PERCENT));
  return isHollow
    ? { ...chart, subtitle: `Hollow: at most ${FLOOR_PERCENT}% above dense, or below it` }
    : chart;
}

/** Each method with the group size that is best for it. */
function overParameters(rows: readonly ComparisonRow[], dense: ComparisonRow): Chart {
  return {
    title: 'Perplexity over parameters removed, each method with its best group size',
    x: { label: 'parameters of the routed experts removed, %' },
    y: Y_AXIS,
    series: methodSeries(rows, dense, ({ ratio }) => 100 * (1 - ratio)).filter(({ points }) =>
      points.some(([removed]) => removed > 0),
    ),
  };
}

function overBytes(rows: readonly ComparisonRow[], dense: ComparisonRow): Chart {
  return {
    title: 'Perplexity over bytes kept, each method with its best group size',
    x: { label: 'bytes of the routed experts, % of dense' },
    y: Y_AXIS,
    series: methodSeries(rows, dense, ({ bytes: own }) => (100 * own) / dense.bytes),
  };
}

function methodSeries(
  rows: readonly ComparisonRow[],
  dense: ComparisonRow,
  x: (row: ComparisonRow) => number,
): Series[] {
  return groupBy(rows, ({ method }) => method).map(([label, own], i) => ({
    label,
    ...colorAndMarker(i),
    points: groupBy(own, ({ targetRatio }) => String(targetRatio))
      .map(([, same]) => same.reduce((a, b) => (b.perplexity < a.perplexity ? b : a)))
      .map((row) => [x(row), y(row, dense)] as const)
      .sort((a, b) => a[0] - b[0]),
  }));
}

/** As Fig. 2 of the paper; nothing where there was no sweep. */
function groupSizeSweep(rows: readonly ComparisonRow[], dense: ComparisonRow): Chart | undefined {
  const grouped = rows.filter(({ groupSize }) => groupSize !== undefined);
  const methods = [...new Set(rows.map(({ method }) => method))];
  const targets = [...new Set(grouped.map(({ targetRatio }) => targetRatio))];
  const series = groupBy(grouped, ({ method, targetRatio }) => `${method}, ${percent(targetRatio)}`)
    .filter(([, own]) => own.length > 1)
    .map(
      ([label, own]): Series => ({
        label,
        ...colorAndMarker(methods.indexOf((own[0] as ComparisonRow).method)),
        line: lineOf(targets.indexOf((own[0] as ComparisonRow).targetRatio)),
        points: own
          .map((row) => [row.groupSize as number, y(row, dense)] as const)
          .sort((a, b) => a[0] - b[0]),
      }),
    );
  if (series.length === 0) return undefined;
  const sizes = [...new Set(grouped.map(({ groupSize }) => groupSize as number))].sort((a, b) => a - b);
  return {
    title: 'Perplexity over the group size k',
    x: { label: 'experts that share a latent space, k', log: true, ticks: sizes },
    y: Y_AXIS,
    series,
  };
}

/** Of targets, where a chart has lines for several. */
function lineOf(target: number): 'solid' | 'dashed' | 'dotted' {
  return (['solid', 'dashed', 'dotted'] as const)[target % 3] as 'solid';
}

/** A method looks the same in all charts of a comparison. */
function colorAndMarker(method: number): Required<Pick<Series, 'color' | 'marker'>> {
  return { color: method % COLORS, marker: method < COLORS ? 'circle' : 'square' };
}

function groupBy(
  rows: readonly ComparisonRow[],
  key: (row: ComparisonRow) => string,
): [string, ComparisonRow[]][] {
  const groups = new Map<string, ComparisonRow[]>();
  for (const row of rows) groups.set(key(row), [...(groups.get(key(row)) ?? []), row]);
  return [...groups];
}
