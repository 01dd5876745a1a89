#!/usr/bin/env node
// Compares all methods on the trained test model, and writes bench/results/compare-tiny/: compare.json, compare.md and
// charts. `npm run compare-tiny`; needs the build. With --quick a smaller comparison, to see that everything runs: its
// figures mean little. `--methods a,b` takes some only, `--out folder` writes elsewhere.

import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { calibrationIds, evaluationIds, WINDOW } from './tiny-texts.mjs';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const checkpoint = 'test/fixtures/tiny-qwen2-moe';

const { values: options } = parseArgs({
  options: { quick: { type: 'boolean' }, methods: { type: 'string' }, out: { type: 'string' } },
});
const out = options.out ?? join(root, 'bench', 'results', 'compare-tiny');

if (!existsSync(join(root, 'dist', 'index.js'))) {
  console.error('Run "npm run build" first.');
  process.exit(1);
}
const { compareMethods, expertCoverage, METHODS, Model, Tokenizer } = await import('../dist/index.js');
const { ComparisonFolder } = await import('../dist/cli/comparison-folder.js');
const { cells, comparisonFiles } = await import('../dist/cli/comparison-report.js');

const folder = await ComparisonFolder.open(out, true);
const tokenizer = await Tokenizer.open(join(root, checkpoint));
const calibration = calibrationIds(tokenizer, options.quick ? 12 : 32);
const evaluation = evaluationIds(tokenizer);
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
const comparison = {
  checkpoint,
  window: WINDOW,
  tokens: { calibration: calibration.length, evaluation: request.evaluation.length },
  coverage,
  note:
    'Calibration: Moby-Dick, 60 to 93%, and State of the Union addresses, 90 to 97%. Evaluation: within the last 4.5% and 1.8%. ' +
    'Characters beyond ASCII are dropped.',
  rows,
};
await folder.write(comparisonFiles(comparison));
console.log(`${((performance.now() - started) / 60_000).toFixed(1)} minutes. Written to ${out}.`);
