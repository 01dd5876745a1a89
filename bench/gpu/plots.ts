/** Charts of a result of run.py: node build/bench/bench/gpu/plots.js RESULT.json, into the folder of the result. */

import { readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { type Chart, renderChart, type Series } from '../../lib/chart.ts';

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

function tokensPerSecond(model: string, rows: readonly Row[]): Chart {
  const peers = [...new Set(rows.map((row) => row.peer))];
  const series = peers.map((peer): Series => {
    const points = rows
      .filter((row) => row.peer === peer)
      .map(({ tokens = 0, medianMs = 0 }) => [tokens, (1000 * tokens) / medianMs] as const)
      .sort((a, b) => a[0] - b[0]);
    const ours = peer.startsWith('molae');
    return { label: peer, points, line: ours ? 'solid' : 'dashed', marker: ours ? 'circle' : 'square' };
  });
  return {
    title: `Tokens a second through one layer of ${model}, bf16`,
    x: {
      label: 'tokens in the batch (layers take turns)',
      log: true,
      ticks: [1, 4, 16, 64, 512, 4096, 16384],
    },
    y: { label: 'tokens / s', log: true },
    series,
  };
}

const [path] = process.argv.slice(2);
if (!path) throw new Error('Which result?');
const result = JSON.parse(readFileSync(path, 'utf8')) as Result;
const timed = result.rows.filter((row) => row.what === 'layer' && row.model && row.medianMs);
for (const model of new Set(timed.map((row) => row.model as string))) {
  const chart = tokensPerSecond(
    model,
    timed.filter((row) => row.model === model),
  );
  const subtitle = `${result.machine.gpu ?? 'no GPU'}, torch ${result.machine.torch}, ${result.date.slice(0, 10)}`;
  const file = join(dirname(path), `${model.replace(/[^a-z0-9.]+/g, '-')}-tokens-per-second.svg`);
  writeFileSync(file, renderChart({ ...chart, subtitle }));
  console.log(file);
}
