import { renderChart } from '../chart.ts';
import type { ComparisonRow } from '../methods/compare.ts';
import type { LayerCoverage } from '../model/coverage.ts';
import { comparisonCharts, increase } from './comparison-charts.ts';
import { bytes, count, counted, duration, percent, times } from './table.ts';

/** Methods side by side on one model and text. */
export interface Comparison {
  readonly checkpoint: string;
  /** Tokens that attend to each other. */
  readonly window: number;
  /** Tokens that methods could look at, and others that they were judged by. */
  readonly tokens: { readonly calibration: number; readonly evaluation: number };
  /** How many of the tokens that methods could look at reached each expert. */
  readonly coverage?: readonly LayerCoverage[];
  /** Where the tokens come from, in sentences. */
  readonly note?: string;
  /** The model as it is first. */
  readonly rows: readonly ComparisonRow[];
}

/** Names of the columns, as `cells` fills them. */
export const COLUMNS = [
  'method',
  'k',
  'removed',
  'perplexity',
  'above dense',
  'bytes',
  'FLOPs/token',
  'time',
] as const;

/** In percent; without a sign where it rounds to nothing. */
function aboveDense(share: number): string {
  return `${(100 * share).toFixed(2).replace(/^-(?=0\.00$)/, '')}%`;
}

/** A row for people. */
export function cells(row: ComparisonRow, dense: ComparisonRow): string[] {
  return [
    row.method,
    row.groupSize === undefined ? '' : String(row.groupSize),
    percent(1 - row.ratio),
    row.perplexity.toFixed(3),
    row === dense ? '' : aboveDense(increase(row, dense)),
    `${bytes(row.bytes)} (${times(row.bytes / dense.bytes)})`,
    `${count(row.flopsPerToken)} (${times(row.flopsPerToken / dense.flopsPerToken)})`,
    row === dense ? '' : duration(row.seconds),
  ];
}

/** On what the figures are, and what they are of. */
export function explanation({ window, tokens, coverage = [], note }: Comparison): string[] {
  const { calibration, evaluation } = tokens;
  return [
    `Methods looked at ${calibration} tokens at most; perplexity is on ${evaluation} others, in windows of ${window}.`,
    ...(coverage.length === 0 ? [] : [coverageInWords(coverage)]),
    ...(note === undefined ? [] : [note]),
    'Parameters, bytes and FLOPs are those of the routed experts, time is that of compressing.',
  ];
}

/** Of the layer that is covered worst; all of them are in the JSON. */
function coverageInWords(coverage: readonly LayerCoverage[]): string {
  const worst = coverage.reduce((a, b) => (b.fewestTokens < a.fewestTokens ? b : a));
  const unused = coverage.reduce((sum, { unusedExperts }) => sum + unusedExperts.length, 0);
  const lacking = unused === 0 ? 'every expert saw some' : `${counted(unused, 'expert')} saw none`;
  return `Of the tokens that methods looked at, ${lacking}; in layer ${worst.layer}, which is covered worst, the rarest expert saw ${worst.fewestTokens}, the median ${worst.medianTokens}.`;
}

/** compare.json, compare.md and charts: contents by name. */
export function comparisonFiles(comparison: Comparison): Map<string, string> {
  return new Map([
    ['compare.json', `${JSON.stringify(toJson(comparison), null, 2)}\n`],
    ['compare.md', toMarkdown(comparison)],
    ...comparisonCharts(comparison.rows).map(
      ([name, chart]) => [`compare-${name}.svg`, renderChart(chart)] as const,
    ),
  ]);
}

/** The contract of `--json`: methods without groups have a groupSize of null. */
export function toJson({ rows, ...rest }: Comparison): object {
  return { ...rest, rows: rows.map((row) => ({ ...row, groupSize: row.groupSize ?? null })) };
}

function toMarkdown(comparison: Comparison): string {
  const { rows } = comparison;
  const dense = rows[0] as ComparisonRow;
  const line = (values: readonly string[]) => `| ${values.join(' | ')} |`;
  return `${[
    line(COLUMNS),
    line(COLUMNS.map((_, column) => (column === 0 ? '---' : '---:'))),
    ...rows.map((row) => line(cells(row, dense))),
    '',
    ...explanation(comparison),
  ].join('\n')}\n`;
}
