import { openDevice } from '../device.ts';
import { MolaeError } from '../errors.ts';
import { resolveGroups } from '../factorization/groups.ts';
import { calibrate } from '../model/calibration.ts';
import { Model } from '../model/model.ts';
import { groupProbabilities } from '../model/routing-statistics.ts';
import { Tokenizer } from '../model/tokenizer.ts';
import type { ConversionPlan } from '../plan/plan-conversion.ts';
import { readText } from './text.ts';

/** How the routers of a model really use the groups of a plan. */
export interface MeasuredRouting {
  /** Tokens of the text. */
  readonly tokens: number;
  /** For each group, the probability that a token uses it: the mean over all MoE layers. */
  readonly groupProbabilities: readonly number[];
}

/** Runs the model on a text, layer by layer, and counts which groups its tokens use. */
export async function measureRouting(
  checkpoint: string,
  { groupSize, moeLayers }: ConversionPlan,
  textFile: string,
  deviceName: string,
): Promise<MeasuredRouting> {
  const tokenizer = await Tokenizer.open(checkpoint);
  const ids = tokenizer.encode(await readText(textFile));
  if (ids.length === 0) {
    throw new MolaeError('INVALID_ARGUMENT', `Expected text for --text but ${textFile} has no tokens`);
  }
  using device = await openDevice(deviceName);
  await using model = await Model.open(checkpoint, { device, stream: true });
  const groups = resolveGroups({ groupSize }, model.checkpoint.spec.numExperts);
  const sums = new Float64Array(groups.length);
  await calibrate(model, ids, async ({ routing }) => {
    for (const [g, probability] of (await groupProbabilities(routing, groups)).entries()) {
      (sums[g] as number) += probability / moeLayers.length;
    }
    return undefined;
  });
  return { tokens: ids.length, groupProbabilities: Array.from(sums) };
}
