/** Charts of a result of run.py: node build/bench/bench/gpu/plots.js RESULT.json, into the folder of the result. */

import { readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { type Chart, renderChart, type Series } from '../../lib/chart.ts';
import { groupBy } from '../support/group-by.ts';
import { lineStyle, tokensPerSecond, tokensPerSecondChart } from '../support/layer-chart.ts';

interface Row {
  readonly what: string;
  readonly peer: string;
  readonly model?: string;
  readonly tokens?: number;
  readonly medianMs?: number;
}

interface Result {
  readonly date: string;
  readonly machine: { readonly gpu?: string; readonly torch: string };
  readonly rows: readonly Row[];
}

function layerChart(model: string, rows: readonly Row[]): Chart {
  const series = [...groupBy(rows, (row) => row.peer)].map(
    ([peer, group]): Series => ({
      label: peer,
      points: tokensPerSecond(group.map(({ tokens = 0, medianMs = 0 }) => ({ tokens, medianMs }))),
      ...lineStyle(peer.startsWith('molae')),
    }),
  );
  return tokensPerSecondChart(
    `Tokens a second through one layer of ${model}, bf16`,
    'layers take turns',
    series,
  );
}

const [path] = process.argv.slice(2);
if (!path) throw new Error('Which result?');
const result = JSON.parse(readFileSync(path, 'utf8')) as Result;
const timed = result.rows.filter((row) => row.what === 'layer' && row.model && row.medianMs);
for (const [model, rows] of groupBy(timed, (row) => row.model as string)) {
  const chart = layerChart(model, rows);
  const subtitle = `${result.machine.gpu ?? 'no GPU'}, torch ${result.machine.torch}, ${result.date.slice(0, 10)}`;
  const file = join(dirname(path), `${model.replace(/[^a-z0-9.]+/g, '-')}-tokens-per-second.svg`);
  writeFileSync(file, renderChart({ ...chart, subtitle }));
  console.log(file);
}
