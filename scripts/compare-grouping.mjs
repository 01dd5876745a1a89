#!/usr/bin/env node
// Which experts should share? Converts the trained test model with groups by number, by affinity, and by affinity with
// co-activation, and prints what docs/choosing.md has: perplexity above the dense model's, and distinct groups a token needs,
// both on text that no conversion looked at. `node scripts/compare-grouping.mjs`; needs the build.

import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import {
  calibrate,
  convertCalibrated,
  groupProbabilities,
  Model,
  perplexity,
  Tokenizer,
} from '../dist/index.js';
import { calibrationIds, evaluationIds, WINDOW } from './tiny-texts.mjs';

const GROUPINGS = [
  ['consecutive', {}],
  ['affinity', { grouping: 'affinity' }],
  ['affinity, co-activation 0.5', { grouping: 'affinity', coActivation: 0.5 }],
  ['affinity, co-activation 1', { grouping: 'affinity', coActivation: 1 }],
];

const source = join(dirname(dirname(fileURLToPath(import.meta.url))), 'test/fixtures/tiny-qwen2-moe');
const tokenizer = await Tokenizer.open(source);
const [calibration, evaluation] = [calibrationIds(tokenizer), evaluationIds(tokenizer)];
const folder = await mkdtemp(join(tmpdir(), 'molae-grouping-'));
try {
  const dense = await measure(source);
  console.log(`dense: ${dense.toFixed(3)}`);
  console.log(
    'removed | k | groups | perplexity above dense | distinct groups | uniform | FLOPs, latent / dense | all-to-all bytes | seconds',
  );
  for (const targetRatio of [0.35, 0.5]) {
    for (const groupSize of [1, 2, 4]) {
      // Alone, an expert shares with none.
      for (const [name, grouping] of groupSize === 1 ? GROUPINGS.slice(0, 1) : GROUPINGS) {
        const output = join(folder, 'converted');
        const options = { calibration, window: WINDOW, targetRatio, groupSize, ...grouping, force: true };
        const { groupUse, seconds } = await convertCalibrated(source, output, options);
        const above = 100 * ((await measure(output)) / dense - 1);
        const distinct = await distinctGroups(output);
        const cells = [
          `${100 * targetRatio}%`,
          groupSize,
          name,
          `${above.toFixed(3)}%`,
          `${distinct.toFixed(3)} (calibration ${groupUse.distinctGroups.measured.toFixed(3)})`,
          groupUse.distinctGroups.uniform.toFixed(3),
          groupUse.flopsPerToken.ratio.toFixed(3),
          groupUse.allToAllBytesPerToken.latent.toFixed(0),
          seconds.toFixed(1),
        ];
        console.log(cells.join(' | '));
      }
    }
  }
} finally {
  await rm(folder, { recursive: true, force: true });
}

async function measure(path) {
  const model = await Model.open(path);
  const { perplexity: measured } = await perplexity(model, evaluation, { window: WINDOW });
  await model.close();
  return measured;
}

/** That a token of the evaluation text needs of a converted checkpoint, by the original's routing: the mean over layers. */
async function distinctGroups(path) {
  const [original, converted] = [await Model.open(source), await Model.open(path)];
  const needed = [];
  const count = async ({ layer, routing }) => {
    const groups = converted.checkpoint.layer(layer).groups.map(({ experts }) => experts);
    const used = await groupProbabilities(routing, groups);
    needed.push(used.reduce((sum, probability) => sum + probability, 0));
  };
  await calibrate(original, evaluation, count, { window: WINDOW });
  for (const model of [original, converted]) await model.close();
  return needed.reduce((sum, value) => sum + value, 0) / needed.length;
}
