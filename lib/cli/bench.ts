import { benchMachine, type MachineBench } from '../bench/machine-bench.ts';
import type { Row } from '../bench/row.ts';
import { openDevice } from '../device.ts';
import type { CommandDefinition } from './command.ts';
import { DEVICE_OPTION } from './option.ts';
import { withProgress } from './progress.ts';
import { duration, table, times, wrap } from './table.ts';

export const bench: CommandDefinition = {
  name: 'bench',
  positionals: [],
  summary: "this machine against its own limits: layers' speed",
  description: [
    "Measures what the processor can do at best (fused multiply-adds, OpenBLAS sgemm, reading memory), and in the same run how near to it molae comes: layers of a real model's sizes with random weights, dense and latent, a factorization, and what a call costs. Takes less than a minute on a quiet machine, and a few gigabytes of memory.",
  ],
  options: [
    { ...DEVICE_OPTION, description: "auto (default) or cpu: a GPU's own limits are not measured" },
    { name: 'threads', value: 'n', description: 'of the CPU (every processor of this process)' },
  ],
  examples: [
    ['bench', 'how near to its limits does this machine run?'],
    [`bench --json | jq '.results[] | {name, tokens, dtype, ofCeiling}'`, 'for scripts'],
  ],
  async run(args, output) {
    const threads = args.positiveInteger('threads');
    const name = args.device();
    if (name !== 'auto' && name !== 'cpu') throw args.wrong('device', 'auto or cpu', name);
    using device = await openDevice(name, threads === undefined ? {} : { threads });
    const result = await withProgress('measuring', (signal, progress) =>
      benchMachine(device, {
        signal,
        onProgress: (done, total, note) => progress.update(done, total, note),
      }),
    );
    output.result(result, () => describeBench(result, output.width));
  },
};

/** The table for people. */
export function describeBench(
  { machine, threads, ceilings, ceilingsSpread, results, seconds }: MachineBench,
  width: number,
): string[] {
  const limit = (what: string, name: keyof typeof ceilings, unit: string) => [
    what,
    ceilings[name].toFixed(1),
    unit,
    ceilingsSpread[name].map((value) => value.toFixed(1)).join('–'),
  ];
  return [
    ...wrap(
      `${machine.cpu}, ${threads} of ${machine.processors} processors, ${machine.features.join(' ')}`,
      width,
    ),
    '',
    ...table(
      [
        ['Limits of the machine', 'median', '', 'lowest–highest'],
        limit('  fused multiply-adds', 'fmaGflops', 'GFLOP/s'),
        limit('  OpenBLAS sgemm 2048³', 'sgemmGflops', 'GFLOP/s'),
        limit('  reading memory', 'readGBps', 'GB/s'),
      ],
      ['left', 'right', 'left', 'right'],
    ),
    '',
    ...describeRows(results),
    '',
    ...wrap(
      'limit: the least time that arithmetic or memory allows, over the median, and which of the two it is. T: tokens of a call. A factorization counts by its Gram matrices alone.',
      width,
    ),
    ...ceilingsUnsteady(ceilingsSpread, width),
    `Measured in ${duration(seconds)}.`,
  ];
}

/** Rows of the same shape follow each other under it. */
function describeRows(results: readonly Row[]): string[] {
  const header = ['', 'T', 'dtype', 'median', 'p10–p90', 'GFLOP/s', 'GB/s', 'limit', ''];
  const rows = [...new Set(results.map(({ shape }) => shape))].flatMap((shape) =>
    results.filter((row) => row.shape === shape),
  );
  const [titles = '', ...lines] = table(
    [header, ...rows.map(cells)],
    ['left', 'right', 'left', 'right', 'right', 'right', 'right', 'right', 'left'],
  );
  return [
    titles,
    ...rows.flatMap(({ shape }, i) => [...(shape === rows[i - 1]?.shape ? [] : [shape]), lines[i] as string]),
  ];
}

function cells({ name, tokens, dtype, medianMs, p10Ms, p90Ms, gflops, gbps, ...of }: Row): string[] {
  const number = (value: number | null) => value?.toFixed(1) ?? '';
  return [
    `  ${name}`,
    tokens === null ? '' : String(tokens),
    dtype,
    inUnitOf(medianMs, medianMs, true),
    `${inUnitOf(p10Ms, medianMs)}–${inUnitOf(p90Ms, medianMs)}`,
    number(gflops),
    number(gbps),
    of.ofCeiling === null ? '' : `${Math.round(100 * of.ofCeiling)}%`,
    of.ofCeiling === null ? '' : of.ofCeiling === of.ofRead ? 'memory' : 'arithmetic',
  ];
}

/** Milliseconds as three digits, in microseconds where `like` is a few of them. */
function inUnitOf(ms: number, like: number, unit = false): string {
  const micro = like < 0.1;
  const value = micro ? 1000 * ms : ms;
  const digits = value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
  return `${value.toFixed(digits)}${unit ? (micro ? ' µs' : ' ms') : ''}`;
}

/** Limits that moved by more than this say that something else ran. */
const STEADY = 1.25;

function ceilingsUnsteady(spread: MachineBench['ceilingsSpread'], width: number): string[] {
  const worst = Math.max(...Object.values(spread).map(([lowest, highest]) => highest / lowest));
  if (worst < STEADY) return [];
  return wrap(
    `The limits themselves moved by ${times(worst)} during the run: something else is at work here. Rows are held against limits that were measured in turns with them.`,
    width,
  );
}
