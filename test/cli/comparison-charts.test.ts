import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { comparisonCharts } from '../../lib/cli/comparison-charts.ts';
import { ROOT } from './support.ts';

const compared = JSON.parse(
  await readFile(join(ROOT, 'bench/results/compare-tiny/compare.json'), 'utf8'),
  (key, value) => (key === 'groupSize' ? (value ?? undefined) : value),
);

it('a method looks the same in every chart, and no two look the same', () => {
  const looks = new Map<string, Set<string>>();
  for (const [, { series }] of comparisonCharts(compared.rows)) {
    for (const { label, color, marker } of series) {
      const [method = ''] = label.split(',');
      looks.set(method, (looks.get(method) ?? new Set()).add(`${color} ${marker}`));
    }
  }
  for (const [method, own] of looks) expect([...own], method).toHaveLength(1);
  expect(new Set([...looks.values()].map((own) => [...own][0])).size).toBe(looks.size);
});

it('what lost nothing is told from what lost little', () => {
  const charts = Object.fromEntries(comparisonCharts(compared.rows));
  expect(charts.parameters?.subtitle).toMatch(/^Hollow: at most 0\.01% above dense/);
  const points = charts.parameters?.series.flatMap((one) => one.points) ?? [];
  expect(points.some(([, percent]) => percent < 0)).toBe(true);
  const some = compared.rows.filter(({ method }: { method: string }) =>
    ['dense', 'svd', 'reap'].includes(method),
  );
  for (const [, chart] of comparisonCharts(some)) expect(chart.subtitle).toBeUndefined();
});
