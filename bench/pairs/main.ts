import { resolve } from 'node:path';
import { describeCell, describeLayer, type LayerKind } from '../../lib/bench/cells.ts';
import type { LayerDType } from '../../lib/bench/layers.ts';
import { EXIT } from '../../lib/cli/failure.ts';
import { type Alignment, table, times } from '../../lib/cli/table.ts';
import { UsageError } from '../../lib/cli/usage-error.ts';
import { PACKAGE_ROOT } from '../../lib/package.ts';
import { Failure } from '../support/failure.ts';
import { type Ask, Build } from './build.ts';
import { type PairsOptions, parsePairsOptions, USAGE } from './options.ts';
import { type Comparison, compareTurns, type Turn } from './turns.ts';

const COLUMNS: readonly (readonly [title: string, alignment: Alignment])[] = [
  ['layer', 'left'],
  ['dtype', 'left'],
  ['T', 'right'],
  ['before ms', 'right'],
  ['now ms', 'right'],
  ['GFLOP/s', 'right'],
  ['GB/s', 'right'],
  ['speedup', 'right'],
  ['lowest–highest', 'left'],
  ['now faster', 'right'],
];

async function main(args: readonly string[]): Promise<number> {
  const options = parsePairsOptions(args);
  if (!options) {
    process.stdout.write(`${USAGE}\n`);
    return EXIT.done;
  }
  const rows: string[][] = [];
  for (const dtype of options.dtypes) rows.push(...(await comparePrecision(options, dtype)));
  const titles = COLUMNS.map(([title]) => title);
  const alignments = COLUMNS.map(([, alignment]) => alignment);
  process.stdout.write(`${describeCell(options.cell)}, packed\n`);
  process.stdout.write(`${table([titles, ...rows], alignments).join('\n')}\n`);
  return EXIT.done;
}

/** The rows of one dtype: both builds hold its layers meanwhile. */
async function comparePrecision(options: PairsOptions, dtype: LayerDType): Promise<string[][]> {
  const layers = { cell: options.cell, dtype, threads: options.threads };
  using before = await Build.start(resolve(options.before), layers);
  using now = await Build.start(PACKAGE_ROOT, layers);
  const rows: string[][] = [];
  for (const kind of options.kinds) {
    for (const tokens of options.tokens) {
      const comparison = await takeTurns(
        before,
        now,
        { kind, tokens, seconds: options.seconds },
        options.rounds,
      );
      rows.push(makeRow(options, kind, dtype, tokens, comparison));
      process.stderr.write(`  ${rows.at(-1)?.join(' ')}\n`);
    }
  }
  return rows;
}

/** Which one begins alternates, so that a machine that slows down or gets faster favours neither. */
async function takeTurns(before: Build, now: Build, ask: Ask, rounds: number): Promise<Comparison> {
  const turns = new Map<Build, Turn[]>([
    [before, []],
    [now, []],
  ]);
  for (let round = 0; round < rounds; round++) {
    for (const build of round % 2 === 0 ? [before, now] : [now, before])
      turns.get(build)?.push(await build.turn(ask));
  }
  return compareTurns(turns.get(before) as Turn[], turns.get(now) as Turn[]);
}

function makeRow(
  { cell }: PairsOptions,
  kind: LayerKind,
  dtype: LayerDType,
  tokens: number,
  { beforeMs, nowMs, work, speedup, won, rounds }: Comparison,
): string[] {
  return [
    kind === 'dense' ? kind : describeLayer(kind, cell).replace(describeCell(cell), kind),
    dtype,
    String(tokens),
    beforeMs.toPrecision(3),
    nowMs.toPrecision(3),
    (work.flops / nowMs / 1e6).toFixed(1),
    (work.bytes / nowMs / 1e6).toFixed(1),
    times(speedup.median),
    `${speedup.low.toFixed(2)}–${speedup.high.toFixed(2)}`,
    `${won} of ${rounds}`,
  ];
}

try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  if (!(error instanceof UsageError || error instanceof Failure)) throw error;
  process.stderr.write(`bench:pairs: ${error.message}\n`);
  if (error instanceof UsageError) process.stderr.write('See: npm run bench:pairs -- --help\n');
  process.exitCode = error instanceof UsageError ? EXIT.usage : EXIT.failed;
}
