import { expect, it } from 'vitest';
import { COLORS, renderChart, type Series } from '../lib/chart.ts';

const series = (label: string, points: Series['points']): Series => ({ label, points });

function render(all: readonly Series[], floor?: number): string {
  return renderChart({
    title: 'a < b',
    x: { label: 'x' },
    y: { label: 'y', log: true, ...(floor === undefined ? {} : { floor }) },
    series: all,
  });
}

it('what is not above the floor is hollow, and no line says that it stays there', () => {
  const svg = render(
    [
      series('lost nothing', [
        [1, 0.001],
        [2, -3],
        [3, 10],
      ]),
    ],
    0.01,
  );
  expect(svg.match(/<circle [^>]*fill="white"/g)).toHaveLength(2);
  const lines = [...svg.matchAll(/<polyline points="([^"]*)"/g)].map((found) => found[1]?.split(' '));
  // From the second point to the third only.
  expect(lines.map((points) => points?.length)).toEqual([2]);
  expect(svg).toContain('>≤ 0.01<');
  expect(svg).not.toMatch(/NaN|Infinity|undefined/);
});

it('a legend of many lines makes the chart higher, not longer than it', () => {
  const many = Array.from({ length: 40 }, (_, i) => series(`line ${i}`, [[1, i + 1]]));
  const svg = render(many);
  const height = Number(/height="(\d+)"/.exec(svg)?.[1]);
  const lowest = Math.max(
    ...[...svg.matchAll(/<text x="[^"]*" y="([^"]*)"/g)].map((found) => Number(found[1])),
  );
  expect(lowest).toBeLessThan(height);
  expect(svg).toContain('a &lt; b');
});

it('has as many colors as it says', () => {
  const svg = render(Array.from({ length: COLORS }, (_, i) => series(`line ${i}`, [[1, i + 1]])));
  expect(new Set([...svg.matchAll(/<circle [^>]*fill="([^"]*)"/g)].map((found) => found[1])).size).toBe(
    COLORS,
  );
});

it('writes labels as XML reads them back', () => {
  expect(render([series('q4 & q8 > a', [[1, 2]])])).toContain('>q4 &amp; q8 &gt; a<');
});
