import { basename, resolve } from 'node:path';
import type { MoeSpec } from '../checkpoint/family.ts';
import type { Comparison } from '../costs/layer-costs.ts';
import { type ConversionPlan, planConversion } from '../plan/plan-conversion.ts';
import type { PlanOptions } from '../plan/request.ts';
import type { CommandDefinition } from './command.ts';
import { estimateTime, type TimeEstimate } from './estimate.ts';
import { type MeasuredRouting, measureRouting } from './measured-routing.ts';
import { DEVICE_OPTION } from './option.ts';
import { readPlannedModel } from './planned-model.ts';
import { readSizes, SIZE_OPTIONS } from './sizes.ts';
import { bytes, count, counted, duration, table, times, wrap } from './table.ts';

export const plan: CommandDefinition = {
  name: 'plan',
  positionals: ['checkpoint'],
  summary: 'what a conversion would cost and save, before any work',
  description: [
    'Compares the routed experts before and after a conversion: what they store, compute, read and send. Costs are sums over all MoE layers; ratio is latent / dense, so above 1 the latent form is the worse one. With small groups it often computes more than it saves in storage.',
    'Without --latent-size and --target-ratio the latent size is the width of an expert, as in the paper. Nothing is written. A folder with config.json alone is enough.',
  ],
  options: [
    ...SIZE_OPTIONS,
    {
      name: 'text',
      value: 'file',
      description: 'measure on this text which groups tokens use, instead of assuming uniform routing',
    },
    DEVICE_OPTION,
  ],
  examples: [
    ['plan ./Qwen1.5-MoE-A2.7B --target-ratio 0.3', 'a third less; the planner chooses the group size'],
    ['plan ./Qwen1.5-MoE-A2.7B --group-size 15 --latent-size 704', 'these sizes'],
    ['plan ./Qwen1.5-MoE-A2.7B --group-size 15 --text wiki.txt', 'with the routing of real text'],
  ],
  async run(args, output) {
    const sizes = readSizes(args);
    const device = args.device();
    const model = await readPlannedModel(args.positional(0));
    const { path, spec, bytesPerParameter, otherParameters } = model;
    const common = { bytesPerParameter, otherParameters };
    const uniform = planConversion(spec, { ...sizes, ...common });
    const text = args.string('text');
    const routing = text === undefined ? undefined : await measureRouting(path, uniform, text, device);
    const planned =
      routing === undefined ? uniform : withRouting(spec, uniform, { ...sizes, ...common }, routing);
    const estimate = await estimateTime(model, planned, device);
    const { perLayer, weightBytesPerBatch: _, ...rest } = planned;
    const measured = routing === undefined ? {} : { measuredRouting: routing };
    const from = otherParameters === undefined ? { configOnly: true } : {};
    output.result({ checkpoint: path, ...from, ...rest, perLayer, estimate, ...measured }, () => [
      ...wrap(`${basename(resolve(path))}: ${sizesInWords(planned)}`, output.width),
      ...wrap(planned.reason, output.width),
      ...(otherParameters === undefined ? wrap(CONFIG_ONLY, output.width) : []),
      ...(routing === undefined ? [] : wrap(routingInWords(uniform, routing), output.width)),
      '',
      ...costTable(planned),
      '',
      ...wrap(worseInWords(planned), output.width),
      ...(model.quantized ? wrap(QUANTIZED, output.width) : []),
      ...wrap(timeInWords(estimate), output.width),
    ]);
  },
};

const CONFIG_ONLY =
  'There are no weights in the folder: sizes and dtype are those that config.json names, and what lies beside the routed experts is not counted.';

const QUANTIZED =
  'The source is quantized to one byte a weight, the latent form is not: count half of the dense weight bytes above.';

/** The same sizes, with costs by measured routing. */
function withRouting(
  spec: MoeSpec,
  uniform: ConversionPlan,
  { targetRatio: _, ...options }: PlanOptions,
  { groupProbabilities }: MeasuredRouting,
): ConversionPlan {
  const { groupSize, latentSize, reason, groupSizeChosen } = uniform;
  const measured = planConversion(spec, { ...options, groupSize, latentSize, groupProbabilities });
  return { ...measured, reason, groupSizeChosen };
}

function routingInWords(
  { distinctGroups }: ConversionPlan,
  { tokens, groupProbabilities }: MeasuredRouting,
): string {
  const measured = groupProbabilities.reduce((sum, probability) => sum + probability, 0);
  return `Routing measured on ${counted(tokens, 'token')}: ${measured.toFixed(2)} groups a token; uniform routing would use ${distinctGroups.toFixed(2)}.`;
}

function sizesInWords({ groupSize, numGroups, latentSize, moeLayers }: ConversionPlan): string {
  return `${counted(moeLayers.length, 'MoE layer')}, ${counted(numGroups, 'group')} of ${counted(groupSize, 'expert')}, latent size ${latentSize}`;
}

type Row = readonly [label: string, costs: Comparison | undefined, humanize: (value: number) => string];

function rowsOf(planned: ConversionPlan): readonly Row[] {
  return [
    ['Parameters, whole model', planned.parameters, count],
    ['  parameters', planned.expertParameters, count],
    ['  FLOPs per token', planned.flopsPerToken, count],
    ['  weight bytes per token', planned.weightBytesPerToken, bytes],
    ['  all-to-all bytes per token', planned.allToAllBytesPerToken, bytes],
  ];
}

function costTable(planned: ConversionPlan): string[] {
  const [whole, ...experts] = rowsOf(planned).map(cells);
  return table(
    [['', 'dense', 'latent', 'ratio', ''], whole ?? [], ['Routed experts'], ...experts],
    ['left', 'right', 'right', 'right', 'left'],
  );
}

function cells([label, costs, humanize]: Row): string[] {
  if (costs === undefined) return [label, 'not known'];
  const { dense, latent, ratio } = costs;
  return [label, humanize(dense), humanize(latent), times(ratio), isWorse(costs) ? 'worse' : ''];
}

/** What is printed as 1.00× is no news. */
function isWorse({ ratio }: Comparison): boolean {
  return ratio >= 1.005;
}

function worseInWords(planned: ConversionPlan): string {
  const worse = rowsOf(planned).filter(([, costs]) => costs !== undefined && isWorse(costs));
  if (worse.length === 0) {
    return 'The latent form is worse in none of these. What it loses in accuracy, convert measures.';
  }
  const labels = worse.map(([label, costs]) => `${label.trim()} (${times(costs?.ratio ?? 1)})`);
  const remedy =
    planned.numGroups === 1
      ? 'A smaller latent size lowers that'
      : 'A larger group size or a smaller latent size lowers that';
  return `The latent form is WORSE in ${labels.join(', ')}. ${remedy}, and loses accuracy.`;
}

function timeInWords({ seconds, device, gemmGflops }: TimeEstimate): string {
  return `Conversion on ${device}: about ${duration(roughly(seconds))}, an estimate from ${gemmGflops.toFixed(0)} GFLOP/s measured just now.`;
}

/** An estimate pretends to no more than two digits. */
function roughly(seconds: number): number {
  return seconds > 60 ? Math.round(seconds / 30) * 30 : Number(seconds.toPrecision(1));
}
