import { checkWorkOptions, expectedCount, MolaeError } from '../errors.ts';
import { awaitNative } from '../native.ts';
import type { Tensor } from '../tensor.ts';
import { forEachBatch } from './hidden-states.ts';
import type { Model } from './model.ts';
import type { PerplexityOptions } from './perplexity.ts';
import { predictions, rowsOfLogits } from './predictions.ts';
import { checkWindow, cutWindows, defaultWindow } from './windows.ts';

/** How near the predictions of one model are to those of another, on the same text. */
export interface ModelComparison {
  /** Mean KL(reference ‖ other) of the next-token distributions, in nats. */
  readonly klDivergence: number;
  /** Share of predictions whose most likely token is the same. */
  readonly topOneAgreement: number;
  readonly tokens: number;
}

/**
 * How far another model's next-token distributions are from a reference model's, on the windows of the perplexity
 * protocol. Both models need the same vocabulary and device.
 *
 * @throws MolaeError `SHAPE_MISMATCH` for another vocabulary; and what `perplexity` throws.
 */
export async function compareModels(
  reference: Model,
  other: Model,
  ids: ArrayLike<number>,
  options: PerplexityOptions = {},
): Promise<ModelComparison> {
  const { window = defaultWindow(reference), signal, onProgress } = options;
  checkWorkOptions(options);
  checkVocabularies(reference, other);
  checkWindow(reference, window);
  checkWindow(other, window);
  const windows = cutWindows(ids, window);
  if (windows.length === 0) throw expectedCount('at least two tokens', 'ids', `${ids.length} tokens`);
  const total = windows.reduce((sum, ids) => sum + ids.length, 0);
  let [divergence, agreements, tokens, done] = [0, 0, 0, 0];
  await forEachBatch(reference, windows, signal, async (batch, hidden) => {
    await forEachBatch(other, batch, signal, async (part, otherHidden) => {
      // Batches of both models are the same as long as both keep their layers; a streaming model has one large batch.
      using own = hidden.rows(rowOf(batch, part), rowOf(batch, part) + (otherHidden.shape[0] as number));
      const { scored } = predictions(part);
      for (const { rows, begin, end } of rowsOfLogits(own)) {
        using otherRows = otherHidden.rows(begin, end);
        using p = await reference.turn(signal, async (context) =>
          (await reference.logits(context, rows)).to('f32'),
        );
        const result = await other.turn(signal, async (context) =>
          compareLogits(reference, p, await other.logits(context, otherRows)),
        );
        for (let i = 0; i < end - begin; i++) {
          if (!scored[begin + i]) continue;
          divergence += result.divergences[i] as number;
          agreements += result.agreements[i] as number;
          tokens++;
        }
      }
    });
    done += batch.reduce((sum, ids) => sum + ids.length, 0);
    onProgress?.({ done, total });
  });
  return { klDivergence: divergence / tokens, topOneAgreement: agreements / tokens, tokens };
}

/** The first row of `part`, whose windows are the very arrays of `batch`. */
function rowOf(batch: readonly number[][], part: readonly number[][]): number {
  const first = batch.indexOf(part[0] as number[]);
  return batch.slice(0, first).reduce((sum, ids) => sum + ids.length, 0);
}

async function compareLogits(model: Model, p: Tensor, q: Tensor) {
  const rows = p.shape[0] as number;
  using divergences = model.device.empty('f64', [rows]);
  using agreements = model.device.empty('i32', [rows]);
  await awaitNative(() =>
    model.device.native.compareDistributions(p.native, q.native, divergences.native, agreements.native),
  );
  return { divergences: await divergences.read(), agreements: await agreements.read() };
}

/** A model, or what is known of one before it is loaded. */
interface WithVocabulary {
  readonly checkpoint: Pick<Model['checkpoint'], 'path'>;
  readonly spec: Pick<Model['spec'], 'vocabSize'>;
}

/** @internal Throws unless both models predict as many tokens. */
export function checkVocabularies(reference: WithVocabulary, other: WithVocabulary): void {
  const [ours, theirs] = [reference.spec.vocabSize, other.spec.vocabSize];
  if (ours === theirs) return;
  throw new MolaeError(
    'SHAPE_MISMATCH',
    `${reference.checkpoint.path} has a vocabulary of ${ours} tokens, ${other.checkpoint.path} one of ${theirs}: their predictions cannot be compared`,
  );
}
