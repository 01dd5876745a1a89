import type { SearchReport } from '../../methods/calibrated/search.ts';
import { surveyedPart } from '../../methods/calibrated/survey.ts';
import type { TextParts } from '../../model/calibration.ts';
import { KeptInputs, keptInputBytes } from '../../model/kept-inputs.ts';
import { Model } from '../../model/model.ts';
import { checkConversion } from '../options.ts';
import { OutputFolder } from '../output-folder.ts';
import type { ConversionReport } from '../report.ts';
import { runConversion } from '../run.ts';
import { withSource } from '../source.ts';
import type { GroupUseReport } from './group-use.ts';
import { CalibratedMethod, type CalibrationCoverage } from './method.ts';
import { type CalibratedConversionOptions, checkOptions, KEPT_BYTES } from './options.ts';
import { chooseSizes, needsSurvey, recallChoice } from './size-choice.ts';

/**
 * What `convertCalibrated` did: the report of every conversion, and what the calibration text had to do with it.
 */
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
  checkConversion(output, options);
  checkOptions(options);
  return withSource(input, options.device, async (checkpoint, device) => {
    const { search = false, force = false, signal } = options;
    await OutputFolder.check(input, output, force);
    await using model = await Model.open(input, { device, stream: !search, signal });
    const kept = keptInputs(model, options);
    const earlier = await recallChoice(model, options, await OutputFolder.remembered(output));
    // Else it is found out when the output is opened, after the survey.
    if (needsSurvey(options) && !earlier) await OutputFolder.refuseDiscarding(output, force);
    const choice = await chooseSizes(model, options, earlier, kept);
    const method = new CalibratedMethod(model, options, choice, conversionText(model, options, kept));
    const report = await runConversion(checkpoint, output, options, method);
    const { coverage: calibration, groupUse } = method;
    return {
      ...report,
      calibration,
      ...(groupUse && { groupUse }),
      ...(choice.search && { search: choice.search }),
    };
  });
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
