import { openCheckpoint } from '../../checkpoint/checkpoint.ts';
import { DTYPE_BYTES } from '../../checkpoint/safetensors/dtype.ts';
import { type Device, openDevice } from '../../device.ts';
import { expected, throwIfAborted } from '../../errors.ts';
import { DenseExperts, type LatentExperts } from '../../experts.ts';
import {
  type CalibratedGroupSource,
  type CalibratedSteps,
  calibratedPasses,
  factorizeCalibratedGroup,
  type LayerInputs,
} from '../../factorization/calibrated-group.ts';
import { GatheredFactors } from '../../factorization/factors.ts';
import { madeAhead } from '../../made-ahead.ts';
import { type SearchOptions, type SearchReport, stepsOf } from '../../methods/calibrated/search.ts';
import { surveyedPart } from '../../methods/calibrated/survey.ts';
import type { Grouping } from '../../methods/grouping/grouping.ts';
import { calibrateParts, type TextParts } from '../../model/calibration.ts';
import type { CalibrationLayer } from '../../model/calibration-layer.ts';
import { fewestAndMedian, layerCoverage } from '../../model/coverage.ts';
import { KeptInputs, keptInputBytes } from '../../model/kept-inputs.ts';
import { Model } from '../../model/model.ts';
import { expertCounts } from '../../model/routing-statistics.ts';
import { defaultWindow } from '../../model/windows.ts';
import type { Operator } from '../../operators.ts';
import { type ConversionReport, checkSource, type OutputOptions, runConversion } from '../convert.ts';
import type { FactorShapes, GroupFactors, LayerMethod, LayerWriter, StepListener } from '../layer-method.ts';
import { OutputFolder } from '../output-folder.ts';
import { GroupUseCounter, type GroupUseReport } from './group-use.ts';
import {
  chooseSizes,
  fingerprintOf,
  needsSurvey,
  provenanceOf,
  type SizeChoice,
  shapesOf,
} from './size-choice.ts';

export interface CalibratedConversionOptions extends OutputOptions, CalibratedSteps, Grouping {
  /** Token ids of text like that which the model will see: ten thousands of them, better a hundred thousand. */
  readonly calibration: ArrayLike<number>;
  /** Tokens that attend to each other; by default 256. */
  readonly window?: number | undefined;
  /**
   * Remove at least this share of the routed experts' parameters; latent sizes go where they are worth most, which takes
   * a look at a quarter of the text first. Exactly one of `targetRatio` and `latentSize` is needed.
   */
  readonly targetRatio?: number | undefined;
  /** The same r everywhere. */
  readonly latentSize?: number | undefined;
  /**
   * k; with `targetRatio` by default 1, which computes least and loses no more where it was measured
   * (docs/choosing.md), with `latentSize` the planner's choice.
   */
  readonly groupSize?: number | undefined;
  readonly operators?: readonly Operator[] | undefined;
  readonly sharedGateUp?: boolean | undefined;
  /**
   * Try group sizes, one B for gate and up, and down left dense on a part of the text first, and take the best; see
   * `searchCalibrated`. What is given is not searched for. Needs `targetRatio`, and memory for the whole model.
   */
  readonly search?: boolean | undefined;
  /**
   * Calibrate each layer on what the layers converted before it let through, instead of the original's hidden states. By
   * default false: it gained nothing where it was measured.
   */
  readonly sequential?: boolean | undefined;
  /**
   * How many bytes the inputs of the layers may take that are kept from the pass that chooses latent sizes, so that the conversion
   * need not take that quarter of the text through the model again: 4n + 8K for each of its tokens and MoE layers. What is more is
   * not kept, and neither is anything with `sequential`. By default 2 GiB; makes no difference to the result.
   */
  readonly keptBytes?: number | undefined;
  /** Called after each layer of the pass that chooses latent sizes, before `onProgress` is. */
  readonly onSurvey?: ((progress: { readonly done: number; readonly total: number }) => void) | undefined;
  /** Called before each candidate of the search. */
  readonly onCandidate?: SearchOptions['onCandidate'];
  /** By default `openDevice('auto')`. */
  readonly device?: Device | undefined;
}

/** How the text covers the experts. */
export interface CalibrationCoverage {
  readonly tokens: number;
  readonly window: number;
  /** The fewest tokens that an expert saw, over all layers converted by this run. */
  readonly fewestTokens: number;
  readonly medianTokens: number;
  /** Experts that no token reached, as [layer, expert]. */
  readonly unusedExperts: readonly (readonly [number, number])[];
}

export interface CalibratedConversionReport extends ConversionReport {
  readonly calibration: CalibrationCoverage;
  /** How the text uses the groups; missing where a run went on from one that had finished all layers. */
  readonly groupUse?: GroupUseReport;
  /** What was tried, where that was asked for. */
  readonly search?: SearchReport;
}

/**
 * Converts a checkpoint folder so that what its experts put out on calibration text suffers least; see
 * `factorizeCalibrated`. Otherwise like `convertCheckpoint`, but it must run the model. A stopped run goes on with the first layer that
 * is missing, with the latent sizes that it had chosen.
 *
 * Memory: one layer at a time (with `search` the model); three matrices [tokens, n] in f32; for the group that is factorized six of
 * [n, n] in f64, and in f32 one [n, n] for each expert that sees more than n tokens and one [tokens, n] where several experts share; its
 * factors and those of the group before, which are being written; and what `keptBytes` allows.
 *
 * @throws MolaeError as `convertCheckpoint` and `Model.open`; `DEVICE_UNAVAILABLE` on devices that cannot do this.
 */
export async function convertCalibrated(
  input: string,
  output: string,
  options: CalibratedConversionOptions,
): Promise<CalibratedConversionReport> {
  if (typeof output !== 'string' || output === '') throw expected('the path of a folder', 'output', output);
  checkCalibration(options.calibration);
  checkKeptBytes(options);
  calibratedPasses(options);
  throwIfAborted(options.signal);
  await using checkpoint = await openCheckpoint(input);
  checkSource(checkpoint);
  const device = options.device ?? (await openDevice('auto'));
  try {
    const { search = false, signal } = options;
    await using model = await Model.open(input, { device, stream: !search, signal });
    const kept = keptInputs(model, options);
    const choice = await chooseSizes(model, options, await OutputFolder.remembered(output), kept);
    const method = new CalibratedMethod(model, options, choice, conversionText(model, options, kept));
    const report = await runConversion(checkpoint, output, options, method);
    const { coverage: calibration, groupUse } = method;
    return {
      ...report,
      calibration,
      ...(groupUse && { groupUse }),
      ...(choice.search && { search: choice.search }),
    };
  } finally {
    if (!options.device) device.dispose();
  }
}

/** A few windows at least: with less there is nothing to fit to. */
const FEWEST_TOKENS = 1024;

function checkCalibration(ids: ArrayLike<number>): void {
  const length: unknown = ids?.length;
  if (typeof length !== 'number' || length < FEWEST_TOKENS) {
    throw expected(`at least ${FEWEST_TOKENS} tokens`, 'calibration', `${length} tokens`);
  }
}

const KEPT_BYTES = 2 * 1024 ** 3;

function checkKeptBytes({ keptBytes = KEPT_BYTES }: CalibratedConversionOptions): void {
  if (typeof keptBytes === 'number' && keptBytes >= 0) return;
  throw expected('a number of bytes, at least 0', 'keptBytes', keptBytes);
}

/** Nothing where there is no use for them, or they would be too many. */
function keptInputs(model: Model, options: CalibratedConversionOptions): KeptInputs | undefined {
  const { sequential = false, keptBytes = KEPT_BYTES } = options;
  // Converted layers let other things through than a survey sees.
  if (!needsSurvey(options) || sequential) return undefined;
  const { length } = surveyedPart(model, options).surveyed;
  return keptInputBytes(model.checkpoint.spec, length) <= keptBytes ? new KeptInputs() : undefined;
}

/**
 * The text with what is surveyed as a part of its own, whether or not it is kept (a run that goes on does not survey), so that the
 * result is the same in all bits.
 */
function conversionText(
  model: Model,
  options: CalibratedConversionOptions,
  kept: KeptInputs | undefined,
): TextParts {
  if (!needsSurvey(options)) return [options.calibration];
  const { surveyed, rest } = surveyedPart(model, options);
  const parts = [kept && kept.tokens > 0 ? kept : surveyed];
  return rest.length > 0 ? [...parts, rest] : parts;
}

class CalibratedMethod implements LayerMethod {
  readonly name = 'calibrated';
  readonly shapes: FactorShapes;
  readonly reason: string | undefined;
  readonly fingerprint: unknown;
  readonly stepsPerLayer: number;
  readonly memory: unknown;
  readonly provenance: Readonly<Record<string, unknown>>;
  readonly #sharedGateUp: boolean;
  readonly #model: Model;
  readonly #options: CalibratedConversionOptions;
  readonly #text: TextParts;
  readonly #counts = new Map<number, Float64Array>();
  readonly #use: GroupUseCounter;

  constructor(model: Model, options: CalibratedConversionOptions, choice: SizeChoice, text: TextParts) {
    const { calibration, window } = options;
    this.#model = model;
    this.#options = options;
    this.#text = text;
    this.reason = choice.reason;
    this.memory = choice.memory;
    this.provenance = provenanceOf(options, choice);
    this.shapes = shapesOf(choice, model.checkpoint.spec.numExperts, options.quantize);
    this.#use = new GroupUseCounter(
      model.checkpoint.spec,
      this.shapes,
      (layer) => DTYPE_BYTES[model.checkpoint.expertDtype(layer, 'gate')],
    );
    this.#sharedGateUp = choice.sharedGateUp;
    this.fingerprint = {
      ids: fingerprintOf(calibration),
      parts: text.length,
      window,
      steps: stepsOf(options),
      sequential: options.sequential,
      device: model.device.info.kind,
    };
    this.stepsPerLayer = calibratedPasses(options) * model.checkpoint.spec.numExperts;
  }

  get coverage(): CalibrationCoverage {
    const { calibration, window = defaultWindow(this.#model) } = this.#options;
    const layers = [...this.#counts].map(([layer, counts]) => layerCoverage(layer, counts));
    return {
      tokens: calibration.length,
      window,
      ...fewestAndMedian(layers.flatMap(({ expertTokens }) => expertTokens)),
      unusedExperts: layers.flatMap(({ layer, unusedExperts }) =>
        unusedExperts.map((expert) => [layer, expert] as const),
      ),
    };
  }

  get groupUse(): GroupUseReport | undefined {
    return this.#use.report;
  }

  async run(wanted: readonly number[], write: LayerWriter, step: StepListener): Promise<void> {
    const { window, signal, sequential = false } = this.#options;
    const left = new Set(wanted);
    const substitutes: LatentExperts[] = [];
    try {
      await calibrateParts(
        this.#model,
        this.#text,
        async (layer) => {
          await this.#use.count(layer);
          if (!left.has(layer.layer) && !sequential) return undefined;
          const { numExperts } = this.#model.checkpoint.spec;
          this.#counts.set(layer.layer, await expertCounts(layer.routing, numExperts));
          const made = new GatheredFactors();
          try {
            const groups = this.#factorize(layer, step, sequential ? made : undefined);
            if (left.delete(layer.layer)) await write(layer.layer, groups);
            else for await (const _ of groups); // written by an earlier run: only what follows needs it
            if (!sequential) return undefined;
            for (const earlier of substitutes.splice(0)) earlier.dispose();
            const experts = made.experts(
              layer.block.experts as DenseExperts,
              this.shapes.groups(layer.layer),
            );
            substitutes.push(experts);
            return experts;
          } catch (error) {
            made.dispose();
            throw error;
          }
        },
        { window, signal },
      );
    } finally {
      for (const experts of substitutes) experts.dispose();
    }
  }

  /**
   * `keep` takes the factors over; otherwise they are let go of once they are written. While those of a group are, the next one is
   * factorized.
   */
  #factorize(
    layer: CalibrationLayer,
    step: StepListener,
    keep: GatheredFactors | undefined,
  ): AsyncIterable<GroupFactors> {
    const groups = this.shapes.groups(layer.layer);
    return madeAhead(
      groups.length,
      async (group) => {
        const made = await this.#factorizeGroup(layer, group, groups[group] as readonly number[], step);
        keep?.add(made.factors);
        return made;
      },
      ({ factors }) => {
        if (keep) return;
        for (const [, { a, b }] of factors) for (const tensor of [a, b]) tensor.dispose();
      },
    );
  }

  async #factorizeGroup(
    { layer, block, x, routing }: CalibrationLayer,
    group: number,
    members: readonly number[],
    step: StepListener,
  ): Promise<GroupFactors> {
    const experts = block.experts;
    if (!(experts instanceof DenseExperts)) throw new Error('the experts of a source are dense');
    const inputs: LayerInputs = { x, routing };
    const options = {
      ...this.#options,
      sharedGateUp: this.#sharedGateUp,
      dtype: this.shapes.quantization,
    };
    const source: CalibratedGroupSource = {
      experts,
      inputs,
      group,
      members,
      sizes: (operator) =>
        this.shapes.operators.includes(operator) ? this.shapes.latentSize(layer, operator, group) : undefined,
    };
    const at = { layer, operator: 'gate', group } as const;
    return { group, factors: await factorizeCalibratedGroup(source, options, () => step(at)) };
  }
}
