import type { Device } from '../../device.ts';
import { checkCallback, expected, expectedCount } from '../../errors.ts';
import { type CalibratedSteps, calibratedPasses } from '../../factorization/calibrated-group.ts';
import type { SearchOptions } from '../../methods/calibrated/search.ts';
import type { Grouping } from '../../methods/grouping/grouping.ts';
import type { Operator } from '../../operators.ts';
import type { OutputOptions } from '../options.ts';

/** How `convertCalibrated` converts, with which text and into what. */
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

/** Throws what can be said before the model is opened. */
export function checkOptions(options: CalibratedConversionOptions): void {
  checkCalibration(options.calibration);
  checkKeptBytes(options);
  checkCallback(options.onSurvey, 'onSurvey');
  checkCallback(options.onCandidate, 'onCandidate');
  calibratedPasses(options);
}

/** A few windows at least: with less there is nothing to fit to. */
const FEWEST_TOKENS = 1024;

function checkCalibration(ids: ArrayLike<number>): void {
  const length: unknown = ids?.length;
  if (typeof length !== 'number' || length < FEWEST_TOKENS) {
    throw expectedCount(`at least ${FEWEST_TOKENS} tokens`, 'calibration', `${length} tokens`);
  }
}

/** `keptBytes` where nothing is said. */
export const KEPT_BYTES = 2 * 1024 ** 3;

function checkKeptBytes({ keptBytes = KEPT_BYTES }: CalibratedConversionOptions): void {
  if (typeof keptBytes === 'number' && keptBytes >= 0) return;
  throw expected('a number of bytes, at least 0', 'keptBytes', keptBytes);
}
