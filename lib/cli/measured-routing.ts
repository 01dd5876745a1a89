import { openDevice } from '../device.ts';
import { expectedCount } from '../errors.ts';
import { resolveGroups } from '../factorization/groups.ts';
import { calibrate, type LayerVisitor } from '../model/calibration.ts';
import { Model } from '../model/model.ts';
import { groupProbabilities } from '../model/routing-statistics.ts';
import type { ConversionPlan } from '../plan/plan-conversion.ts';
import { withProgress } from './progress.ts';
import { openTokenizer, readTokens } from './text.ts';

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
  const tokenizer = await openTokenizer(checkpoint);
  const ids = await readTokens(textFile, tokenizer);
  if (ids.length < 2) throw expectedCount('at least two tokens', '--text', `${ids.length} tokens`);
  using device = await openDevice(deviceName);
  return await withProgress('measuring', async (signal, progress) => {
    await using model = await Model.open(checkpoint, { device, stream: true, signal });
    const groups = resolveGroups({ groupSize }, model.checkpoint.spec.numExperts);
    const sums = new Float64Array(groups.length);
    const count: LayerVisitor = async ({ routing }) => {
      for (const [g, probability] of (await groupProbabilities(routing, groups)).entries()) {
        (sums[g] as number) += probability / moeLayers.length;
      }
      return undefined;
    };
    await calibrate(model, ids, count, {
      signal,
      onProgress: ({ done, total }) => progress.update(done, total, 'routing of the text'),
    });
    return { tokens: ids.length, groupProbabilities: Array.from(sums) };
  });
}
