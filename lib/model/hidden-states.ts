import { throwIfAborted } from '../errors.ts';
import type { Tensor } from '../tensor.ts';
import { batchOfSequences } from './batch.ts';
import type { Model } from './model.ts';
import { windowSpans, windowsPerSpan } from './windows.ts';

/**
 * @internal Takes windows through all layers, some at a time, and hands out their hidden states after the last layer. Each layer of
 * each batch is a turn of the model; `visit` is not called in one.
 */
export async function forEachBatch(
  model: Model,
  windows: readonly number[][],
  signal: AbortSignal | undefined,
  visit: (windows: readonly number[][], hidden: Tensor) => Promise<void>,
): Promise<void> {
  // A model that streams reads every layer once for each round, so all windows go in one round.
  const perRound = model.streams ? windows.length : windowsPerSpan(windows);
  for (let begin = 0; begin < windows.length; begin += perRound) {
    const round = windows.slice(begin, begin + perRound);
    const spans = windowSpans(round);
    using hidden = await model.turn(signal, (context) => model.embed(context, round.flat()));
    for (let index = 0; index < model.spec.numLayers; index++) {
      await model.withLayer(index, async (layer) => {
        for (const span of spans) {
          using x = hidden.rows(span.begin, span.end);
          const batch = batchOfSequences(model.device, span.lengths);
          using _ = batch.positions;
          await model.turn(signal, (context) => layer.forward(context, x, batch));
        }
      });
    }
    for (const span of spans) {
      throwIfAborted(signal);
      using x = hidden.rows(span.begin, span.end);
      await visit(span.windows, x);
    }
  }
}
