import { createHash } from 'node:crypto';
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { Checkpoint } from '../../checkpoint/checkpoint.ts';
import type { BlockDType } from '../../dtype.ts';
import { MolaeError } from '../../errors.ts';
import { consecutiveGroups, type Partition } from '../../factorization/groups.ts';
import { allocateOverLayers, type LayerLatentSizes } from '../../methods/calibrated/allocation.ts';
import { CALIBRATED_GROUP_SIZE } from '../../methods/calibrated/form.ts';
import { type SearchReport, searchCalibrated, stepsOf } from '../../methods/calibrated/search.ts';
import { survey } from '../../methods/calibrated/survey.ts';
import {
  AffinityGrouping,
  checkGrouping,
  type Grouping,
  groupsByAffinity,
} from '../../methods/grouping/grouping.ts';
import type { CalibrationLayer } from '../../model/calibration-layer.ts';
import type { KeptInputs } from '../../model/kept-inputs.ts';
import type { Model } from '../../model/model.ts';
import { OPERATORS, type Operator } from '../../operators.ts';
import { planConversion } from '../../plan/plan-conversion.ts';
import type { FactorShapes } from '../layer-method.ts';
import type { CalibratedConversionOptions } from './options.ts';

/** What a calibrated conversion makes: groups, operators, and the latent sizes of all layers. */
export interface SizeChoice {
  readonly groupSize: number;
  readonly operators: readonly Operator[];
  readonly sharedGateUp: boolean;
  /** By layers; undefined for consecutive ones. */
  readonly groups?: readonly (readonly [number, Partition])[] | undefined;
  /** One for all, or by layers. */
  readonly latentSizes: number | readonly (readonly [number, LayerLatentSizes])[];
  readonly reason: string;
  readonly search?: SearchReport;
  /** All of this, for a run that goes on from here. */
  readonly memory: unknown;
}

type Options = CalibratedConversionOptions;

/** Whether the text is surveyed before the conversion, unless an earlier run did. */
export function needsSurvey({ targetRatio, grouping }: Options): boolean {
  return targetRatio !== undefined || grouping === 'affinity';
}

/** What a stopped run had chosen, of what it left behind, if the same would be chosen again. */
export async function recallChoice(
  model: Model,
  options: Options,
  remembered: unknown,
): Promise<Choice | undefined> {
  const earlier = remembered as { readonly key?: unknown; readonly choice?: Choice } | undefined;
  return earlier?.key === (await keyOf(model, options)) ? earlier.choice : undefined;
}

/**
 * @param earlier what a stopped run to the same output had chosen, if it holds.
 * @param kept gets the inputs of the layers where they are surveyed.
 */
export async function chooseSizes(
  model: Model,
  options: Options,
  earlier: Choice | undefined,
  kept: KeptInputs | undefined,
): Promise<SizeChoice> {
  const { latentSize, targetRatio, search = false } = options;
  if ((latentSize === undefined) === (targetRatio === undefined)) {
    throw new MolaeError('INVALID_ARGUMENT', 'Give either latentSize or targetRatio');
  }
  if (targetRatio === undefined && search) {
    throw new MolaeError('INVALID_ARGUMENT', 'search needs a targetRatio: it compares forms of one size');
  }
  checkGrouping(options, search ? options.groupSize : undefined, model.checkpoint.spec.numExperts);
  if (!needsSurvey(options)) {
    return { ...(await uniformSizes(model, options, undefined)), memory: undefined };
  }
  const choice =
    earlier ??
    (targetRatio === undefined
      ? await uniformSizes(model, options, kept)
      : await allocatedSizes(model, options, targetRatio, kept));
  return { ...choice, memory: { key: await keyOf(model, options), choice } };
}

type Choice = Omit<SizeChoice, 'memory'>;

async function uniformSizes(model: Model, options: Options, kept: KeptInputs | undefined): Promise<Choice> {
  const { groupSize: _, ...form } = givenForm(options);
  const { spec } = model.checkpoint;
  const { groupSize, latentSize, reason } = planConversion(spec, {
    ...form,
    ...(options.groupSize !== undefined && { groupSize: options.groupSize }),
    latentSize: options.latentSize as number,
  });
  checkGrouping(options, groupSize, spec.numExperts);
  const choice = { ...form, groupSize, latentSizes: latentSize };
  const groupsOf = affinityGroupsOf(options, groupSize, spec.numExperts);
  if (!groupsOf) return { ...choice, reason };
  const groups: [number, Partition][] = [];
  await survey({ ...options, model, onLayer: options.onSurvey, kept }, async (layer) => {
    groups.push([layer.layer, await groupsOf(layer)]);
  });
  return { ...choice, groups, reason: `${reason} ${groupingReason(options)}` };
}

/** Nothing for consecutive groups. */
function affinityGroupsOf(options: Options, groupSize: number, numExperts: number) {
  if (!groupsByAffinity(options, groupSize, numExperts)) return undefined;
  const grouping = new AffinityGrouping(options);
  return (layer: CalibrationLayer) => grouping.groups(layer, groupSize);
}

function groupingReason({ coActivation = 0 }: Grouping): string {
  if (coActivation === 0) return 'Experts share with those that look at the same of the inputs.';
  if (coActivation === 1) return 'Experts share with those that fire together.';
  return `Experts share with those that look at the same of the inputs and fire together (co-activation ${coActivation}).`;
}

async function allocatedSizes(
  model: Model,
  options: Options,
  targetRatio: number,
  kept: KeptInputs | undefined,
): Promise<Choice> {
  const { calibration, window, signal, onSurvey } = options;
  const search = options.search ? await searchCalibrated(model, { ...options, targetRatio }) : undefined;
  const { groupSize, operators, sharedGateUp } = search ? search.chosen : givenForm(options);
  const form = { groupSize, operators, sharedGateUp };
  const { spec } = model.checkpoint;
  // Says what is wrong with sizes and target before the pass over the text.
  planConversion(spec, { ...form, targetRatio });
  if (!search) checkGrouping(options, groupSize, spec.numExperts);
  const groupsOf = affinityGroupsOf(options, groupSize, spec.numExperts);
  const { groups, latentSizes } = await allocateOverLayers({
    model,
    calibration,
    window,
    targetRatio,
    ...form,
    groupsOf,
    quantized: options.quantize !== undefined,
    signal,
    onLayer: onSurvey,
    kept,
  });
  const share = `${Number((100 * targetRatio).toFixed(2))}%`;
  const own = `Latent sizes differ between layers, operators and groups: the calibration text says where they are worth most, so that ${share} of the experts' parameters go.`;
  const why = search
    ? `The best of ${search.candidates.length} forms on held-out text.`
    : formReason(options);
  const groupedHow =
    options.grouping === 'affinity'
      ? groupsOf
        ? groupingReason(options)
        : `With groups of ${groupSize}, grouping by affinity has no choice.`
      : undefined;
  return {
    ...form,
    ...(groupsOf && { groups: [...groups] }),
    latentSizes: [...latentSizes],
    reason: [why, own, groupedHow].filter((text) => text !== undefined).join(' '),
    ...(search && { search }),
  };
}

function givenForm({
  groupSize = CALIBRATED_GROUP_SIZE,
  operators = OPERATORS,
  sharedGateUp = false,
}: Options) {
  return { groupSize, operators: OPERATORS.filter((operator) => operators.includes(operator)), sharedGateUp };
}

function formReason({ groupSize }: Options): string | undefined {
  if (groupSize !== undefined) return undefined;
  return 'Groups of one expert compute least; groups of more lost no less on the text where they were compared (search tries them on yours).';
}

/** What the choice depends on. */
async function keyOf({ checkpoint, device }: Model, options: Options): Promise<string> {
  const { window, targetRatio, latentSize, search, quantize, calibration } = options;
  const { groupSize, operators, sharedGateUp, grouping, coActivation } = options;
  const files = await Promise.all(checkpoint.shards.files.map((name) => fileKey(checkpoint, name)));
  const form = { groupSize, operators, sharedGateUp, quantize, grouping, coActivation };
  const given = { window, targetRatio, latentSize, ...form, search, steps: stepsOf(options) };
  const parts = [files, given, fingerprintOf(calibration), device.info.kind, checkpoint.config];
  return createHash('sha256').update(JSON.stringify(parts)).digest('hex');
}

async function fileKey({ path }: Checkpoint, name: string): Promise<readonly unknown[]> {
  const { size, mtimeMs } = await stat(join(path, name));
  return [name, size, mtimeMs];
}

/** Of token ids. */
export function fingerprintOf(ids: ArrayLike<number>): string {
  return createHash('sha256').update(Int32Array.from(ids)).digest('hex');
}

export function shapesOf(
  choice: SizeChoice,
  numExperts: number,
  quantization: BlockDType | undefined,
): FactorShapes {
  const { groupSize, operators, sharedGateUp, latentSizes } = choice;
  const consecutive = consecutiveGroups(numExperts, groupSize);
  const groups = new Map(choice.groups);
  const byLayer = typeof latentSizes === 'number' ? undefined : new Map(latentSizes);
  return {
    groups: (layer) => groups.get(layer) ?? consecutive,
    operators,
    sharedGateUp,
    quantization,
    latentSize: (layer, operator, group) =>
      byLayer
        ? ((byLayer.get(layer) as LayerLatentSizes)[operator][group] as number)
        : (latentSizes as number),
  };
}

/** What the converted checkpoint's config says of how it was made. */
export function provenanceOf(options: Options, { search, groups }: SizeChoice): Record<string, unknown> {
  const { targetRatio, calibration, coActivation = 0 } = options;
  return {
    calibrationTokens: calibration.length,
    ...(targetRatio !== undefined && { targetRatio }),
    ...(groups && { grouping: 'affinity', coActivation }),
    ...(search && { search: searchSummary(search) }),
  };
}

function searchSummary({ candidates, chosen, tokens }: SearchReport) {
  const row = ({
    groupSize,
    sharedGateUp,
    operators,
    perplexity,
    flopsPerToken,
  }: SearchReport['chosen']) => ({
    groupSize,
    sharedGateUp,
    operators,
    perplexity,
    flopsPerToken,
  });
  return { heldOutTokens: tokens.heldOut, chosen: row(chosen), candidates: candidates.map(row) };
}
