/** Small SVG charts: lines and points on linear or logarithmic axes. */

export interface Axis {
  readonly label: string;
  readonly log?: boolean;
  /** By default from the data, with some room; linear axes begin at 0. */
  readonly range?: readonly [number, number];
  /** Where to mark the axis; by default round numbers. */
  readonly ticks?: readonly number[];
  /** Of the y axis: what is not above it is drawn there, hollow, and no line says that it stays there. */
  readonly floor?: number;
}

export interface Series {
  readonly label: string;
  readonly points: readonly (readonly [x: number, y: number])[];
  /** Of the palette; by default one after the other. */
  readonly color?: number;
  readonly line?: 'solid' | 'dashed' | 'dotted' | 'none';
  readonly marker?: 'circle' | 'square' | 'none';
}

export interface Chart {
  readonly title: string;
  readonly subtitle?: string;
  readonly x: Axis;
  readonly y: Axis;
  readonly series: readonly Series[];
}

const WIDTH = 860;
const LEAST_HEIGHT = 480;
const LEGEND_WIDTH = 250;
const PLOT = { left: 72, top: 64, right: WIDTH - LEGEND_WIDTH };
const BELOW_PLOT = 56;
const LEGEND_LINE = 20;
const PALETTE = [
  ...['#1f77b4', '#d95f02', '#2ca02c', '#9467bd', '#c0392b', '#7f6000', '#e377c2', '#555555'],
  ...['#17becf', '#b8a500', '#000080', '#ff9896', '#006d5b', '#5b3a1a'],
];
/** Colors that can be told apart. */
export const COLORS = PALETTE.length;
const LIGHT = '#e4e4e4';
const DARK = '#333333';

interface Scale {
  readonly floor: number;
  readonly range: readonly [number, number];
  readonly ticks: readonly number[];
  place(value: number): number;
}

export function renderChart({ title, subtitle, x, y, series }: Chart): string {
  const visible = series.filter(({ points }) => points.length > 0);
  const height = Math.max(LEAST_HEIGHT, PLOT.top + LEGEND_LINE * (visible.length + 1));
  const bottom = height - BELOW_PLOT;
  const xs = scale(
    x,
    visible.flatMap(({ points }) => points.map((p) => p[0])),
    PLOT.left,
    PLOT.right,
  );
  const ys = scale(
    y,
    visible.flatMap(({ points }) => points.map((p) => p[1])),
    bottom,
    PLOT.top,
  );
  const parts = [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" width="${WIDTH}" height="${height}" ` +
      'font-family="DejaVu Sans, Helvetica, Arial, sans-serif" font-size="12">',
    `<rect width="${WIDTH}" height="${height}" fill="white"/>`,
    text(PLOT.left, 26, title, 'font-size="16" font-weight="bold"'),
    subtitle ? text(PLOT.left, 46, subtitle) : '',
    '<clipPath id="plot">' +
      `<rect x="${PLOT.left}" y="${PLOT.top}" width="${PLOT.right - PLOT.left}" height="${bottom - PLOT.top}"/>` +
      '</clipPath>',
    ...xs.ticks.map((tick) => line(xs.place(tick), PLOT.top, xs.place(tick), bottom, LIGHT)),
    ...ys.ticks.map((tick) => line(PLOT.left, ys.place(tick), PLOT.right, ys.place(tick), LIGHT)),
    ...xs.ticks.map((tick) => text(xs.place(tick), bottom + 18, number(tick), 'text-anchor="middle"')),
    ...ys.ticks.map((tick) =>
      text(PLOT.left - 8, ys.place(tick) + 4, tickLabel(tick, ys), 'text-anchor="end"'),
    ),
    line(PLOT.left, bottom, PLOT.right, bottom, DARK),
    line(PLOT.left, PLOT.top, PLOT.left, bottom, DARK),
    text((PLOT.left + PLOT.right) / 2, height - 14, x.label, 'text-anchor="middle"'),
    text(
      0,
      0,
      y.label,
      `text-anchor="middle" transform="translate(18 ${(PLOT.top + bottom) / 2}) rotate(-90)"`,
    ),
    '<g clip-path="url(#plot)">',
    ...visible.map((one, i) => drawSeries(one, i, xs, ys)),
    '</g>',
    ...visible.map(drawLegend),
    '</svg>',
  ];
  return `${parts.filter((part) => part !== '').join('\n')}\n`;
}

function drawSeries(one: Series, index: number, xs: Scale, ys: Scale): string {
  const color = colorOf(one, index);
  const placed = one.points.map(
    ([px, py]): Placed => ({ x: xs.place(px), y: ys.place(Math.max(py, ys.floor)), hollow: py <= ys.floor }),
  );
  const strokes = stretches(placed).map(
    (stretch) =>
      `<polyline points="${stretch.map((point) => `${point.x.toFixed(1)},${point.y.toFixed(1)}`).join(' ')}" fill="none" stroke="${color}" stroke-width="1.8"${dash(one)}/>`,
  );
  const markers = placed.map((point) => marker(one, point, color));
  return [...(one.line === 'none' ? [] : strokes), ...markers].join('');
}

interface Placed {
  readonly x: number;
  readonly y: number;
  /** Not above the floor of the axis. */
  readonly hollow?: boolean;
}

/** Points that a line goes through without a break: none between two at the floor. */
function stretches(points: readonly Placed[]): Placed[][] {
  const all: Placed[][] = [];
  for (const [i, point] of points.entries()) {
    if (i === 0 || (point.hollow && points[i - 1]?.hollow)) all.push([point]);
    else all.at(-1)?.push(point);
  }
  return all.filter(({ length }) => length > 1);
}

function tickLabel(tick: number, { floor }: Scale): string {
  return tick === floor ? `≤ ${number(tick)}` : number(tick);
}

function drawLegend(one: Series, index: number): string {
  const y = PLOT.top + 10 + LEGEND_LINE * index;
  const x = PLOT.right + 18;
  const color = colorOf(one, index);
  const sample =
    one.line === 'none'
      ? ''
      : `<line x1="${x}" y1="${y}" x2="${x + 22}" y2="${y}" stroke="${color}" stroke-width="1.8"${dash(one)}/>`;
  return sample + marker(one, { x: x + 11, y }, color) + text(x + 30, y + 4, one.label);
}

function marker({ marker: kind = 'circle' }: Series, { x, y, hollow }: Placed, color: string): string {
  if (kind === 'none') return '';
  const paint = hollow ? `fill="white" stroke="${color}" stroke-width="1.4"` : `fill="${color}"`;
  if (kind === 'circle') return `<circle cx="${x.toFixed(1)}" cy="${y.toFixed(1)}" r="3.6" ${paint}/>`;
  return `<rect x="${(x - 3.3).toFixed(1)}" y="${(y - 3.3).toFixed(1)}" width="6.6" height="6.6" ${paint}/>`;
}

function dash({ line: kind }: Series): string {
  if (kind === 'dotted') return ' stroke-dasharray="1.5 3.5"';
  return kind === 'dashed' ? ' stroke-dasharray="5 4"' : '';
}

function colorOf({ color }: Series, index: number): string {
  return PALETTE[(color ?? index) % PALETTE.length] as string;
}

function scale(axis: Axis, values: readonly number[], from: number, to: number): Scale {
  const floor = axis.floor ?? Number.NEGATIVE_INFINITY;
  const shown = values.map((value) => Math.max(value, floor));
  const finite = shown.filter((value) => Number.isFinite(value) && (!axis.log || value > 0));
  const low = Math.min(...finite);
  const high = Math.max(...finite);
  const range = axis.range ?? (axis.log ? [low / 1.3, high * 1.3] : [0, high * 1.08]);
  const f = axis.log ? Math.log : (value: number) => value;
  const ticks = axis.ticks ?? (axis.log ? logTicks(...range) : linearTicks(...range));
  return {
    floor,
    range,
    ticks: ticks.filter((tick) => tick >= range[0] * (1 - 1e-9) && tick <= range[1] * (1 + 1e-9)),
    place: (value) => from + ((to - from) * (f(value) - f(range[0]))) / (f(range[1]) - f(range[0])),
  };
}

function linearTicks(low: number, high: number): number[] {
  const rough = (high - low) / 6;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 2.5, 5, 10].find((s) => s * power >= rough) as number);
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, i) => (first + i) * step);
}

function logTicks(low: number, high: number): number[] {
  const ticks: number[] = [];
  const steps = high / low > 300 ? [1] : [1, 2, 5];
  for (let power = Math.floor(Math.log10(low)); 10 ** power <= high; power++) {
    ticks.push(...steps.map((step) => step * 10 ** power));
  }
  return ticks;
}

function line(x1: number, y1: number, x2: number, y2: number, color: string): string {
  const at = [x1, y1, x2, y2].map((v) => v.toFixed(1));
  return `<line x1="${at[0]}" y1="${at[1]}" x2="${at[2]}" y2="${at[3]}" stroke="${color}"/>`;
}

function text(x: number, y: number, content: string, attributes = ''): string {
  const escaped = content.replace(/[&<>]/g, (c) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;' })[c] as string);
  return `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" fill="${DARK}" ${attributes}>${escaped}</text>`;
}

function number(value: number): string {
  const digits = Number.isInteger(value) ? 15 : 4;
  return value.toLocaleString('en-US', { maximumSignificantDigits: digits });
}
