import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Ceilings } from '../../lib/bench/ceilings.ts';
import { describeMachine, type Machine } from '../../lib/bench/machine.ts';
import { type CeilingsSpread, ceilingsSpread, medianCeilings } from '../../lib/bench/yardstick.ts';
import { type Alignment, table } from '../../lib/cli/table.ts';
import type { DeviceInfo } from '../../lib/device.ts';
import type { Row } from './context.ts';
import { makePlots } from './plots.ts';

export interface Results {
  readonly version: string;
  /** Of the last run; each row has its own. */
  readonly date: string;
  readonly quick: boolean;
  readonly machine: Machine;
  readonly threads: number;
  /** The median over all timings; every row is held against what was measured in turns with it. */
  readonly ceilings: Ceilings;
  /** Lowest and highest: how much the machine was disturbed. */
  readonly ceilingsSpread: CeilingsSpread;
  readonly results: readonly Row[];
}

export function makeResults(
  version: string,
  info: DeviceInfo,
  quick: boolean,
  measured: readonly Ceilings[],
  rows: readonly Row[],
): Results {
  return {
    version,
    date: new Date().toISOString(),
    quick,
    machine: describeMachine(info),
    threads: info.threads,
    ceilings: medianCeilings(measured),
    ceilingsSpread: ceilingsSpread(measured),
    results: rows,
  };
}

/**
 * "AMD EPYC-Milan Processor" with 2 threads is amd-epyc-milan-2t. Held to narrower vectors than it has, a processor counts
 * as another one: amd-epyc-milan-avx2-2t.
 */
function machineSlug({ name: cpu, threads }: Pick<DeviceInfo, 'name' | 'threads'>): string {
  const name = cpu
    .toLowerCase()
    .replace(/\((r|tm|c)\)|@.*|\b(processor|cpu|\d+-core)\b/g, ' ')
    .replace(/[^a-z0-9]+/g, '-')
    .replace(/^-+|-+$/g, '');
  return [name, process.env.MOLAE_INSTRUCTIONS, `${threads}t`].filter(Boolean).join('-');
}

/** Where the results of a machine are. */
export function resultsPath(folder: string, info: Pick<DeviceInfo, 'name' | 'threads'>): string {
  return join(folder, `${machineSlug(info)}.json`);
}

/**
 * Writes the results and their plots. Rows of questions that were not asked this time are kept from the file that is
 * there: their ratios are from another run.
 */
export function writeResults(folder: string, results: Results): string[] {
  mkdirSync(folder, { recursive: true });
  const { machine, threads, date } = results;
  const path = resultsPath(folder, { name: machine.cpu, threads });
  const asked = new Set(results.results.map((row) => row.question));
  const kept = (readResults(path)?.results ?? []).filter((row) => !asked.has(row.question));
  const merged = { ...results, results: [...results.results, ...kept] };
  writeFileSync(path, `${JSON.stringify(merged, undefined, 1)}\n`);
  const subtitle = `${machine.cpu}, ${threads} threads, ${date.slice(0, 10)}`;
  const written = [path];
  for (const [name, svg] of makePlots(merged.results, results.ceilings, subtitle)) {
    const file = path.replace(/\.json$/, `-${name}.svg`);
    writeFileSync(file, svg);
    written.push(file);
  }
  return written;
}

export function readResults(path: string): Results | undefined {
  return existsSync(path) ? (JSON.parse(readFileSync(path, 'utf8')) as Results) : undefined;
}

/** Ratios that do not depend on how fast the machine is. */
function trackedRatios(row: Row): Map<string, number> {
  const ratios = new Map<string, number>();
  if (row.ofCeiling !== null) ratios.set('of ceiling', row.ofCeiling);
  for (const [name, peer] of Object.entries(row.peers)) {
    if (!('absent' in peer)) ratios.set(`against ${name}`, peer.speedup);
  }
  return ratios;
}

const FALL = 0.85;

export interface Comparison {
  /** Tracked ratios that both have. */
  readonly compared: number;
  /** Those of them that fell by more than 15%. */
  readonly fallen: readonly Fall[];
}

export interface Fall {
  readonly question: string;
  /** Which ratio, and from what to what it fell. */
  readonly text: string;
}

/** Where `now` has a row several times, as it was measured again, its best ratios count. */
export function compareResults(before: Results, now: readonly Row[]): Comparison {
  const key = (row: Row) =>
    [row.question, row.name, row.shape.replace(/: .*/, ''), row.tokens, row.dtype, row.threads].join('|');
  const measured = new Map<string, Row[]>();
  for (const row of now) measured.set(key(row), [...(measured.get(key(row)) ?? []), row]);
  let compared = 0;
  const fallen: Fall[] = [];
  for (const old of before.results) {
    const rows = measured.get(key(old)) ?? [];
    for (const [name, was] of trackedRatios(old)) {
      const ratios = rows.map((row) => trackedRatios(row).get(name)).filter((ratio) => ratio !== undefined);
      if (ratios.length === 0) continue;
      compared++;
      const best = Math.max(...ratios);
      if (best >= FALL * was) continue;
      const { question, shape, tokens, dtype } = old;
      const text = `${old.name} ${shape} T=${tokens} ${dtype}: ${name} fell from ${was.toFixed(3)} to ${best.toFixed(3)}`;
      fallen.push({ question, text });
    }
  }
  return { compared, fallen };
}

export function describeCeilings(results: Results): string {
  const { fmaGflops, sgemmGflops, readGBps } = results.ceilings;
  const spread = (name: keyof Ceilings) => results.ceilingsSpread[name].map((v) => v.toFixed(1)).join('–');
  return [
    `${results.machine.cpu}, ${results.threads} of ${results.machine.processors} processors, ${results.machine.features.join(' ')}`,
    `FMA peak ${fmaGflops.toFixed(1)} GFLOP/s (${spread('fmaGflops')}), ` +
      `sgemm 2048³ ${sgemmGflops.toFixed(1)} (${spread('sgemmGflops')}), ` +
      `read ${readGBps.toFixed(1)} GB/s (${spread('readGBps')})`,
  ].join('\n');
}

const COLUMNS: readonly (readonly [title: string, alignment: Alignment])[] = [
  ['name', 'left'],
  ['shape', 'left'],
  ['T', 'right'],
  ['dtype', 'left'],
  ['median ms', 'right'],
  ['p10–p90', 'right'],
  ['p99', 'right'],
  ['GFLOP/s', 'right'],
  ['GB/s', 'right'],
  ['%roof', 'right'],
  ['%stages', 'right'],
  ['%FMA', 'right'],
  ['%sgemm', 'right'],
  ['%read', 'right'],
  ['against', 'left'],
  ['goals (must)', 'left'],
];

/** An aligned table of each question's rows. */
export function formatTable(rows: readonly Row[]): string {
  const cells = rows.map((row) => [
    row.name,
    row.shape,
    row.tokens === null ? '' : String(row.tokens),
    row.dtype,
    ms(row.medianMs),
    `${ms(row.p10Ms)}–${ms(row.p90Ms)}`,
    ms(row.p99Ms),
    row.gflops === null ? '' : row.gflops.toFixed(1),
    row.gbps === null ? '' : row.gbps.toFixed(1),
    percent(row.ofCeiling),
    percent(typeof row.data.ofStages === 'number' ? row.data.ofStages : null),
    percent(row.ofFma),
    percent(row.ofSgemm),
    percent(row.ofRead),
    Object.entries(row.peers)
      .map(([name, peer]) => ('absent' in peer ? `${name} absent` : `${peer.speedup.toFixed(2)}× ${name}`))
      .join(', '),
    row.goals
      .map(
        ({ what, value, must, met }) =>
          `${met === 'no' ? '✗' : '✓'} ${what} ${figure(value)} (${figure(must)})`,
      )
      .join(', '),
  ]);
  const header = COLUMNS.map(([title]) => title);
  const alignments = COLUMNS.map(([, alignment]) => alignment);
  return table([header, ...cells], alignments).join('\n');
}

/** Why peers are missing, once each. */
export function absentPeers(rows: readonly Row[]): string[] {
  const reasons = rows.flatMap((row) =>
    Object.entries(row.peers).flatMap(([name, peer]) =>
      'absent' in peer ? [`${name}: ${peer.absent}`] : [],
    ),
  );
  return [...new Set(reasons)];
}

function ms(value: number): string {
  return value >= 100 ? value.toFixed(0) : value >= 0.1 ? value.toFixed(2) : value.toFixed(4);
}

function percent(share: number | null): string {
  return share === null ? '' : (100 * share).toFixed(share < 0.1 ? 1 : 0);
}

function figure(value: number): string {
  return value !== 0 && Math.abs(value) < 0.01 ? value.toExponential(0) : value.toFixed(2);
}
