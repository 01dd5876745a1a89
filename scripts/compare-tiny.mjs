#!/usr/bin/env node
// Compares all methods on the trained test model, and writes bench/results/compare-tiny/: compare.json, compare.md and
// charts. `npm run compare-tiny`; needs the build. With --quick a smaller comparison, to see that everything runs: its
// figures mean little. `--methods a,b` takes some only, `--out folder` writes elsewhere.
//
// Methods look at 32 windows from 60-93% of Moby-Dick and 32 from 90-97% of the State of the Union addresses, as many as
// `molae convert --calibrate` takes; 64 windows from each of the last 4.5% and 1.8% judge. The model was trained on most of
// both texts: only their last 2% it has surely not seen, so that more than half of the windows from Moby-Dick may have been in
// its training. It was trained on ASCII: other characters are dropped, since curly quotes alone raise its perplexity
// threefold and more.

import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const checkpoint = 'test/fixtures/tiny-qwen2-moe';
const WINDOW = 256;

const { values: options } = parseArgs({
  options: { quick: { type: 'boolean' }, methods: { type: 'string' }, out: { type: 'string' } },
});
const out = options.out ?? join(root, 'bench', 'results', 'compare-tiny');

if (!existsSync(join(root, 'dist', 'index.js'))) {
  console.error('Run "npm run build" first.');
  process.exit(1);
}
const { compareMethods, expertCoverage, METHODS, Model, Tokenizer } = await import('../dist/index.js');
const { cells, writeComparison } = await import('../dist/cli/comparison-report.js');

const tokenizer = await Tokenizer.open(join(root, checkpoint));
const [moby, sotu] = [readMobyDick(), readAddresses()];
const windows = options.quick ? 12 : 32;
const calibration = [
  ...spread(tokensOf(moby, 0.6, 0.93), windows),
  ...spread(tokensOf(sotu, 0.9, 0.97), windows),
];
const evaluation = [...spread(tokensOf(moby, 0.955, 1), 64), ...spread(tokensOf(sotu, 0.982, 1), 64)];
const request = {
  methods: METHODS.filter(({ name }) => options.methods?.split(',').includes(name) ?? true),
  targetRatios: options.quick ? [0.35] : [0.25, 0.35, 0.5],
  groupSizes: options.quick ? [4] : [1, 2, 4, 8, 16],
  calibration,
  evaluation: options.quick ? evaluation.filter((_, i) => Math.floor(i / WINDOW) % 4 === 0) : evaluation,
  window: WINDOW,
  onProgress: ({ done, total, method }) => process.stdout.write(`${done + 1} of ${total}: ${method}\n`),
};

const started = performance.now();
const rows = [];
const model = await Model.open(join(root, checkpoint));
for await (const row of compareMethods(model, request)) {
  rows.push(row);
  console.log(`  ${cells(row, rows[0]).join('  ')}`);
}
const coverage = await expertCoverage(model, calibration, { window: WINDOW });
await model.close();
await writeComparison(out, {
  checkpoint,
  window: WINDOW,
  tokens: { calibration: calibration.length, evaluation: request.evaluation.length },
  coverage,
  note:
    'Calibration: Moby-Dick, 60 to 93%, and State of the Union addresses, 90 to 97%. Evaluation: within the last 4.5% and 1.8%. ' +
    'Characters beyond ASCII are dropped.',
  rows,
});
console.log(`${((performance.now() - started) / 60_000).toFixed(1)} minutes. Written to ${out}.`);

function readMobyDick() {
  return ascii(readFileSync(join(packageData('datasets-moby-dick'), 'data.txt'), 'utf8'));
}

function readAddresses() {
  const folder = packageData('datasets-sotu');
  const files = readdirSync(folder).filter((name) => name.endsWith('.txt'));
  return ascii(
    files
      .sort()
      .map((name) => readFileSync(join(folder, name), 'utf8'))
      .join('\n'),
  );
}

function packageData(name) {
  return join(root, 'node_modules', '@stdlib', name, 'data');
}

function ascii(text) {
  return text.replace(/[^\n\x20-\x7e]/g, '');
}

/** Token ids of a part of a text, from one share of its characters to another. */
function tokensOf(text, from, to) {
  return Array.from(
    tokenizer.encode(text.slice(Math.floor(from * text.length), Math.floor(to * text.length))),
  );
}

/** So many windows, evenly spread over the tokens. */
function spread(ids, count) {
  if (ids.length < count * WINDOW)
    throw new Error(`${ids.length} tokens are no ${count} windows of ${WINDOW}`);
  const step = (ids.length - WINDOW) / Math.max(1, count - 1);
  return Array.from({ length: count }, (_, i) => {
    const begin = Math.floor(i * step);
    return ids.slice(begin, begin + WINDOW);
  }).flat();
}
