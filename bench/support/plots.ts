import type { Ceilings } from '../../lib/bench/ceilings.ts';
import { type Chart, renderChart, type Series } from '../../lib/chart.ts';
import type { Row } from './context.ts';
import { groupBy } from './group-by.ts';
import { lineStyle, tokensPerSecond, tokensPerSecondChart } from './layer-chart.ts';

/** The charts of a run, by file name; those without data are left out. */
export function makePlots(rows: readonly Row[], ceilings: Ceilings, machine: string): Map<string, string> {
  const charts: Record<string, Chart | undefined> = {
    roofline: roofline(rows, ceilings),
    'tokens-per-second': layerChart(rows),
    'factorization-time': factorizationTime(rows),
    'error-over-group-size': errorOverGroupSize(rows),
    gain: gains(rows),
  };
  return new Map(
    Object.entries(charts).flatMap(([name, chart]) =>
      chart ? [[name, renderChart({ ...chart, subtitle: chart.subtitle ?? machine })] as const] : [],
    ),
  );
}

function value(row: Row, name: string): number {
  return Number(row.data[name]);
}

function roofline(rows: readonly Row[], { fmaGflops, sgemmGflops, readGBps }: Ceilings): Chart | undefined {
  const points = rows.filter((row) => row.flops && row.bytes && row.gflops);
  if (points.length === 0) return undefined;
  const intensity = (row: Row) => (row.flops as number) / (row.bytes as number);
  const lowest = Math.min(0.3, ...points.map(intensity)) / 1.5;
  const highest = Math.max(100, ...points.map(intensity)) * 1.5;
  const roof = (peak: number): [number, number][] => [
    [lowest, Math.min(peak, lowest * readGBps)],
    [peak / readGBps, peak],
    [highest, peak],
  ];
  const kinds = groupBy(points, (row) => `${row.name}, ${row.dtype}`);
  return {
    title: 'Roofline',
    x: { label: 'FLOPs a byte', log: true, range: [lowest, highest] },
    y: { label: 'useful GFLOP/s', log: true },
    series: [
      {
        label: `FMA peak ${fmaGflops.toFixed(0)} GFLOP/s`,
        points: roof(fmaGflops),
        color: 7,
        marker: 'none',
      },
      {
        label: `sgemm ${sgemmGflops.toFixed(0)}, read ${readGBps.toFixed(0)} GB/s`,
        points: roof(sgemmGflops),
        color: 7,
        line: 'dashed',
        marker: 'none',
      },
      ...[...kinds].map(
        ([label, group], i): Series => ({
          label,
          points: group.map((row) => [intensity(row), row.gflops as number]),
          color: i,
          line: 'none',
          marker: i < 7 ? 'circle' : 'square',
        }),
      ),
    ],
  };
}

/** The latent layer of a model with the most groups and the smallest rank: one line a model is what a plot can show. */
function isSmallest(row: Row, layers: readonly Row[]): boolean {
  const groups = ({ data }: Row) => Number(data.N) / Number(data.k);
  return layers.every(
    (other) =>
      other.data.model !== row.data.model ||
      (groups(other) <= groups(row) && Number(other.data.r) >= Number(row.data.r)),
  );
}

function layerChart(rows: readonly Row[]): Chart | undefined {
  const layers = rows.filter(
    (row) => row.data.kind && row.data.distribution === 'uniform' && row.tokens && row.dtype === 'f32',
  );
  if (layers.length === 0) return undefined;
  const models = [...groupBy(layers, (row) => String(row.data.model)).keys()];
  const shown = layers.filter((row) => row.data.kind === 'dense' || isSmallest(row, layers));
  const lines = groupBy(shown, ({ data }) =>
    data.kind === 'dense' ? `${data.model} dense` : `${data.model} latent, r ${data.r}`,
  );
  const series = [...lines].map(([label, group]): Series => {
    const byTokens = new Map(
      group.map(({ tokens, medianMs }) => [tokens, { tokens: tokens as number, medianMs }]),
    );
    const { model, kind } = (group[0] as Row).data;
    return {
      label,
      points: tokensPerSecond([...byTokens.values()]),
      color: models.indexOf(String(model)),
      ...lineStyle(kind === 'dense'),
    };
  });
  return tokensPerSecondChart(
    'Tokens a second through one layer, f32: dense (solid) and latent (dashed)',
    '16 and 64: all experts, else 16 or 32; up to 4: cold caches',
    series,
  );
}

function factorizationTime(rows: readonly Row[]): Chart | undefined {
  const all = rows.filter((row) => row.question === 'factorize' && row.data.solver);
  const swept = [
    ...groupBy(
      all.filter((row) => row.data.solver === 'gram'),
      shapeOf,
    ).entries(),
  ].sort((a, b) => b[1].length - a[1].length)[0];
  if (!swept) return undefined;
  const [shape, gram] = swept;
  const rank = (row: Row) => value(row, 'r');
  const ends = [Math.min(...gram.map(rank)), Math.max(...gram.map(rank))];
  const flat = (solver: string) => {
    const row = all.find((one) => shapeOf(one) === shape && one.data.solver === solver);
    return row ? ends.map((r) => [r, row.medianMs / 1000] as [number, number]) : [];
  };
  const sample = gram[0] as Row;
  return {
    title: `Factorization of ${sample.data.k} experts ${sample.data.m}x${sample.data.n} in ${sample.dtype}, one operator`,
    x: { label: 'latent size r', range: [0, (ends[1] as number) * 1.05] },
    y: { label: 'seconds' },
    series: [
      { label: 'ours, gram', points: gram.map((row) => [rank(row), row.medianMs / 1000]) },
      { label: 'LAPACK gesdd of the stack', points: flat('gesdd'), line: 'dashed', marker: 'none' },
      { label: "ours, solver: 'svd' (f64)", points: flat('svd'), line: 'dashed', marker: 'none' },
    ],
  };
}

/** What a sweep over r keeps. */
function shapeOf({ data }: Row): string {
  return `${data.k} ${data.m} ${data.n} ${data.experts}`;
}

function errorOverGroupSize(rows: readonly Row[]): Chart | undefined {
  const sweep = rows.filter((row) => row.data.source);
  if (sweep.length === 0) return undefined;
  return {
    title: 'Relative error of the factorization against the group size k',
    x: { label: 'experts that share a latent space, k', log: true, ticks: [1, 2, 4, 8, 16, 32, 64] },
    y: { label: 'relative error', range: [0, 1] },
    series: [
      ...groupBy(sweep, (row) => `${row.data.source}, n${row.data.n} m${row.data.m} r${row.data.r}`),
    ].map(
      ([label, group]): Series => ({
        label,
        points: group.map((row) => [value(row, 'k'), value(row, 'relativeError')]),
      }),
    ),
  };
}

function gains(rows: readonly Row[]): Chart | undefined {
  const latent = rows.filter(({ data }) => data.kind === 'latent' && data.predictedGain !== undefined);
  if (latent.length === 0) return undefined;
  const predicted = latent.map((row) => value(row, 'predictedGain'));
  const measured = latent.map((row) => value(row, 'gain'));
  const top = 1.15 * Math.max(...predicted, ...measured);
  return {
    title: 'Latent against dense: predicted and measured speed-up',
    x: { label: 'predicted: least time dense / least time latent', range: [0, top] },
    y: { label: 'measured: dense time / latent time', range: [0, top] },
    series: [
      {
        label: 'as predicted',
        points: [
          [0, 0],
          [top, top],
        ],
        color: 7,
        line: 'solid',
        marker: 'none',
      },
      {
        label: '80% of it',
        points: [
          [0, 0],
          [top, 0.8 * top],
        ],
        color: 7,
        line: 'dashed',
        marker: 'none',
      },
      ...[...groupBy(latent, (row) => `${row.question}, ${row.dtype}`)].map(
        ([label, group], i): Series => ({
          label,
          points: group.map((row) => [value(row, 'predictedGain'), value(row, 'gain')]),
          color: i,
          line: 'none',
        }),
      ),
    ],
  };
}
