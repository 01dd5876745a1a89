import { createHash } from 'node:crypto';
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { Checkpoint } from '../checkpoint/checkpoint.ts';
import type { FactorShapes } from '../checkpoint/conversion/layer-method.ts';
import type { BlockDType } from '../dtype.ts';
import { MolaeError } from '../errors.ts';
import { OPERATORS, type Operator } from '../experts.ts';
import { resolveGroups } from '../factorize.ts';
import type { Model } from '../model/model.ts';
import { planConversion } from '../plan/plan-conversion.ts';
import { allocateOverLayers, CALIBRATED_GROUP_SIZE, type LayerLatentSizes } from './calibrated.ts';
import type { CalibratedConversionOptions } from './convert-calibrated.ts';
import { type SearchReport, searchCalibrated, stepsOf } from './search.ts';

/** What a calibrated conversion makes: groups, operators, and the latent sizes of all layers. */
export interface SizeChoice {
  readonly groupSize: number;
  readonly operators: readonly Operator[];
  readonly sharedGateUp: boolean;
  /** One for all, or by layers. */
  readonly latentSizes: number | readonly (readonly [number, LayerLatentSizes])[];
  readonly reason: string;
  readonly search?: SearchReport;
  /** All of this, for a run that goes on from here. */
  readonly memory: unknown;
}

type Options = CalibratedConversionOptions;

/**
 * @param remembered what a stopped run to the same output had chosen, if anything; used where it would be chosen again.
 */
export async function chooseSizes(model: Model, options: Options, remembered: unknown): Promise<SizeChoice> {
  const { latentSize, targetRatio, search = false } = options;
  if ((latentSize === undefined) === (targetRatio === undefined)) {
    throw new MolaeError('INVALID_ARGUMENT', 'Give either latentSize or targetRatio');
  }
  if (targetRatio === undefined) {
    if (search)
      throw new MolaeError('INVALID_ARGUMENT', 'search needs a targetRatio: it compares forms of one size');
    return { ...uniformSizes(model, options), memory: undefined };
  }
  const key = await keyOf(model, options);
  const earlier = remembered as { readonly key?: unknown; readonly choice?: SizeChoice } | undefined;
  const choice =
    earlier?.key === key && earlier.choice
      ? earlier.choice
      : await allocatedSizes(model, options, targetRatio);
  return { ...choice, memory: { key, choice } };
}

type Choice = Omit<SizeChoice, 'memory'>;

function uniformSizes(model: Model, options: Options): Choice {
  const { groupSize: _, ...form } = givenForm(options);
  const { groupSize, latentSize, reason } = planConversion(model.checkpoint.spec, {
    ...form,
    ...(options.groupSize !== undefined && { groupSize: options.groupSize }),
    latentSize: options.latentSize as number,
  });
  return { ...form, groupSize, latentSizes: latentSize, reason };
}

async function allocatedSizes(model: Model, options: Options, targetRatio: number): Promise<Choice> {
  const { calibration, window, signal, onSurvey } = options;
  const search = options.search ? await searchCalibrated(model, { ...options, targetRatio }) : undefined;
  const { groupSize, operators, sharedGateUp } = search ? search.chosen : givenForm(options);
  const form = { groupSize, operators, sharedGateUp };
  // Says what is wrong with sizes and target before the pass over the text.
  planConversion(model.checkpoint.spec, { ...form, targetRatio });
  const sizes = await allocateOverLayers({
    model,
    calibration,
    window,
    targetRatio,
    ...form,
    quantized: options.quantize !== undefined,
    signal,
    onLayer: onSurvey,
  });
  const share = `${Number((100 * targetRatio).toFixed(2))}%`;
  const own = `Latent sizes differ between layers, operators and groups: the calibration text says where they are worth most, so that ${share} of the experts' parameters go.`;
  const why = search
    ? `The best of ${search.candidates.length} forms on held-out text.`
    : formReason(options);
  return {
    ...form,
    latentSizes: [...sizes],
    reason: [why, own].filter((text) => text !== undefined).join(' '),
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
  const { window, targetRatio, groupSize, operators, sharedGateUp, search, quantize, calibration } = options;
  const files = await Promise.all(checkpoint.shards.files.map((name) => fileKey(checkpoint, name)));
  const form = { groupSize, operators, sharedGateUp, quantize };
  const given = { window, targetRatio, ...form, search, steps: stepsOf(options) };
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
  const byLayer = typeof latentSizes === 'number' ? undefined : new Map(latentSizes);
  return {
    groups: resolveGroups({ groupSize }, numExperts),
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
export function provenanceOf(options: Options, { search }: SizeChoice): Record<string, unknown> {
  const { targetRatio, calibration } = options;
  return {
    calibrationTokens: calibration.length,
    ...(targetRatio !== undefined && { targetRatio }),
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
