import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { makePlots } from '../../bench/support/plots.ts';
import { type Results, readResults } from '../../bench/support/report.ts';
import { PACKAGE_ROOT } from '../../lib/package.ts';

const FOLDER = join(PACKAGE_ROOT, 'bench/results');
const files = (await readdir(FOLDER)).filter((name) => name.endsWith('.json'));

it.each(files)('every number of the charts of %s is one', (file) => {
  const { results, ceilings } = readResults(join(FOLDER, file)) as Results;
  const charts = makePlots(results, ceilings, file);
  expect(charts.size).toBeGreaterThan(1);
  for (const [name, svg] of charts) expect(svg, name).not.toMatch(/NaN|Infinity|undefined/);
});
