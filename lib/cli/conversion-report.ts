import { relative as relativePath, sep } from 'node:path';
import type { MoeSpec } from '../checkpoint/family.ts';
import type { CalibratedConversionReport } from '../conversion/calibrated/convert.ts';
import type { GroupUseReport } from '../conversion/calibrated/group-use.ts';
import type { Change, ConversionReport } from '../conversion/report.ts';
import { type Comparison, layerCosts } from '../costs/layer-costs.ts';
import { bitsOf } from '../dtype.ts';
import type { SearchCandidate, SearchedForm, SearchReport } from '../methods/calibrated/search.ts';
import { OPERATORS, type Operator } from '../operators.ts';
import { bytes, count, counted, duration, relative, table, times, wrap } from './table.ts';

/** Per token, over all MoE layers, of the latent form, whichever form was written; by measured routing where there is one. */
export function flopsChange(
  model: MoeSpec,
  report: ConversionReport | CalibratedConversionReport,
  sharedGateUp: boolean,
): Change {
  const measured = groupUseOf(report)?.flopsPerToken;
  return measured ? asChange(measured) : flopsByUniformRouting(model, report, sharedGateUp);
}

function asChange({ dense, latent }: Comparison): Change {
  return { before: dense, after: latent };
}

function flopsByUniformRouting(
  model: MoeSpec,
  { groupSize, layers }: ConversionReport,
  sharedGateUp: boolean,
): Change {
  const groupSizes = new Array<number>(model.numExperts / groupSize).fill(groupSize);
  const change = { before: 0, after: 0 };
  for (const layer of model.layers) {
    const latentSizes: Partial<Record<Operator, number[]>> = {};
    for (const { operator, group, latentSize } of layers.filter((row) => row.layer === layer)) {
      latentSizes[operator] ??= [];
      latentSizes[operator][group] = latentSize;
    }
    const { dense, latent } = layerCosts(model, { groupSizes, latentSizes, sharedGateUp }).flopsPerToken;
    change.before += dense;
    change.after += latent;
  }
  return change;
}

/** A conversion, for people. */
export function describe(report: ConversionReport, flopsPerToken: Change, width: number): string[] {
  const { format, reason, resumedFiles, seconds, peakBytes, output } = report;
  return [
    `Converted to ${shortPath(output)}`,
    ...wrap(sizesInWords(report), width),
    ...(reason === undefined ? [] : wrap(reason, width)),
    '',
    ...changes(report, flopsPerToken, groupUseOf(report)),
    ...(format === 'dense'
      ? wrap(
          'Written as dense experts: the counts are those of the latent form, the bytes those written.',
          width,
        )
      : []),
    '',
    ...errors(report.layers),
    '',
    ...groupUse(report, width),
    ...searched(searchOf(report), width),
    ...coverage(report, width),
    `Took ${duration(seconds)}, peak memory ${bytes(peakBytes)}.`,
    ...(resumedFiles > 0
      ? [`Went on from a stopped run, which had finished ${counted(resumedFiles, 'file')}.`]
      : []),
  ];
}

/** What was tried, where that was asked for. */
export function searchOf(report: ConversionReport | CalibratedConversionReport): SearchReport | undefined {
  return 'search' in report ? report.search : undefined;
}

/** The table of it. */
function searched(search: SearchReport | undefined, width: number): string[] {
  if (!search) return [];
  const { candidates, unreachable, chosen, tokens } = search;
  const row = (candidate: SearchCandidate) => [
    formInWords(candidate),
    candidate.perplexity.toFixed(3),
    `${(100 * candidate.excessLoss).toFixed(2)} ± ${(100 * candidate.standardError).toFixed(2)}%`,
    count(candidate.flopsPerToken),
    duration(candidate.seconds),
    isSameForm(candidate, chosen) ? 'chosen' : '',
  ];
  return [
    ...table(
      [['Tried', 'perplexity', 'above best', 'FLOPs/token', 'time', ''], ...candidates.map(row)],
      ['left', 'right', 'right', 'right', 'right', 'left'],
    ),
    ...unreachable.map(({ reason, ...form }) => `${formInWords(form)}: ${reason}.`),
    ...wrap(
      `Judged by ${tokens.heldOut} tokens that the candidates were not fitted to; of those within one standard error, the one that computes least.`,
      width,
    ),
    '',
  ];
}

function isSameForm(a: SearchedForm, b: SearchedForm): boolean {
  return (
    a.groupSize === b.groupSize &&
    a.sharedGateUp === b.sharedGateUp &&
    String(a.operators) === String(b.operators)
  );
}

/** A form that the experts could take. */
export function formInWords({ groupSize, operators, sharedGateUp }: SearchedForm): string {
  const dense = OPERATORS.filter((operator) => !operators.includes(operator));
  return [
    `groups of ${groupSize}`,
    ...(sharedGateUp ? ['one B for gate and up'] : []),
    ...(dense.length > 0 ? [`${dense.join(', ')} dense`] : []),
  ].join(', ');
}

function groupUseOf(report: ConversionReport | CalibratedConversionReport): GroupUseReport | undefined {
  return 'groupUse' in report ? report.groupUse : undefined;
}

/** How the routing of the text uses the groups, where they have more than one expert. */
function groupUse(report: ConversionReport | CalibratedConversionReport, width: number): string[] {
  const use = groupUseOf(report);
  if (!use || report.groupSize === 1) return [];
  const { measured, consecutive, uniform } = use.distinctGroups;
  const text = `A token of the text needs ${measured.toFixed(2)} distinct groups; consecutive ones would be ${consecutive.toFixed(2)}, and ${uniform.toFixed(2)} if all experts fired alike.`;
  return [...wrap(text, width), ''];
}

/** How the calibration text covers the experts, where there was one. */
function coverage(report: ConversionReport | CalibratedConversionReport, width: number): string[] {
  if (!('calibration' in report)) return [];
  const { tokens, fewestTokens, medianTokens, unusedExperts } = report.calibration;
  const lines = [
    `Calibrated on ${tokens} tokens; an expert saw ${medianTokens} of them (median), the rarest ${fewestTokens}.`,
  ];
  if (unusedExperts.length > 0) {
    const named = unusedExperts.slice(0, 5).map(([layer, expert]) => `${layer}.${expert}`);
    lines.push(
      `${counted(unusedExperts.length, 'expert')} saw none (layer.expert: ${named.join(', ')}${unusedExperts.length > 5 ? ', …' : ''}): a longer text would serve them.`,
    );
  }
  return [...lines.flatMap((line) => wrap(line, width)), ''];
}

function sizesInWords({ latentSizes, groupSize, quantization, layers }: ConversionReport): string {
  const distinct = new Set(Object.values(latentSizes));
  const latentSize =
    distinct.size === 1
      ? String([...distinct][0])
      : Object.entries(latentSizes)
          .map(([operator, size]) => `${operator} ${Number(size.toFixed(1))}`)
          .join(', ');
  const converted = new Set(layers.map(({ layer }) => layer)).size;
  const blocks = quantization === undefined ? '' : `, factors in blocks of ${bitsOf(quantization)} bits`;
  return `${counted(converted, 'MoE layer')}, groups of ${counted(groupSize, 'expert')}, latent size ${latentSize}${blocks}`;
}

function changes(
  { parameters, expertParameters, bytes: size }: ConversionReport,
  flops: Change,
  use: GroupUseReport | undefined,
): string[] {
  const row = (label: string, { before, after }: Change, humanize: (value: number) => string) => [
    label,
    humanize(before),
    humanize(after),
    times(after / before),
    after > 1.005 * before ? 'worse' : '',
  ];
  return table(
    [
      ['', 'before', 'after', 'ratio', ''],
      row('Parameters', parameters, count),
      row('Bytes', size, bytes),
      ['Routed experts'],
      row('  parameters', expertParameters, count),
      row('  FLOPs per token', flops, count),
      ...(use
        ? [
            row('  weight bytes per token', asChange(use.weightBytesPerToken), bytes),
            row('  all-to-all bytes per token', asChange(use.allToAllBytesPerToken), bytes),
          ]
        : []),
    ],
    ['left', 'right', 'right', 'right', 'left'],
  );
}

/** Per operator, over layers and groups. */
function errors(reports: ConversionReport['layers']): string[] {
  const hasControl = reports.some(({ controlRelativeError }) => controlRelativeError !== undefined);
  const rows = OPERATORS.flatMap((operator) => {
    const own = reports.filter((report) => report.operator === operator);
    if (own.length === 0) return [];
    const reached = own.map(({ relativeError }) => relativeError);
    return [
      [
        operator,
        relative(Math.min(...reached)),
        relative(median(reached)),
        relative(Math.max(...reached)),
        relative(median(own.map(({ optimalRelativeError }) => optimalRelativeError))),
        ...(hasControl
          ? [relative(median(own.map(({ controlRelativeError }) => controlRelativeError ?? 0)))]
          : []),
        `${own.filter(({ exact }) => exact).length} of ${own.length}`,
      ],
    ];
  });
  const header = [
    'Relative error',
    'min',
    'median',
    'max',
    'optimum',
    ...(hasControl ? ['control'] : []),
    'exact',
  ];
  return table(
    [header, ...rows],
    header.map((_, column) => (column === 0 ? 'left' : 'right')),
  );
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  const upper = sorted[middle] ?? 0;
  return sorted.length % 2 === 1 ? upper : (upper + (sorted[middle - 1] ?? 0)) / 2;
}

/** As the user would type it. */
function shortPath(path: string): string {
  const short = relativePath(process.cwd(), path);
  return short === '' || short.startsWith('..') ? path : `.${sep}${short}`;
}
