import { checkWorkOptions, expectedCount } from '../errors.ts';
import { awaitNative } from '../native.ts';
import type { Tensor } from '../tensor.ts';
import { forEachBatch } from './hidden-states.ts';
import type { Model } from './model.ts';
import { predictions, rowsOfLogits } from './predictions.ts';
import { checkWindow, cutWindows, defaultWindow } from './windows.ts';

/** How a text is cut for `perplexity`. */
export interface PerplexityOptions {
  /** Tokens of a window; by default 256. At most the model's context. */
  readonly window?: number | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Called after every piece of work, in tokens through all layers. */
  readonly onProgress?: ((progress: { readonly done: number; readonly total: number }) => void) | undefined;
}

/** How well a model predicts a text, and how fast that was measured. */
export interface Perplexity {
  /** exp(mean negative log-likelihood) */
  readonly perplexity: number;
  /** Predictions that were scored. */
  readonly tokens: number;
  readonly window: number;
  readonly seconds: number;
  readonly tokensPerSecond: number;
}

/**
 * Perplexity of a model on token ids: non-overlapping windows, each predicting tokens 2…W of itself; f32 logits, f64
 * sums.
 *
 * @throws MolaeError `INVALID_ARGUMENT` for a window longer than the context, fewer than two tokens, an id outside of the
 * vocabulary; `NON_FINITE` where the model's logits are; `ABORTED`.
 */
export async function perplexity(
  model: Model,
  ids: ArrayLike<number>,
  options: PerplexityOptions = {},
): Promise<Perplexity> {
  const { window = defaultWindow(model) } = options;
  const started = performance.now();
  const losses = await lossesByWindow(model, ids, options);
  const loss = losses.reduce((sum, own) => sum + own.total, 0);
  const tokens = losses.reduce((sum, own) => sum + own.tokens, 0);
  const seconds = (performance.now() - started) / 1000;
  return { perplexity: Math.exp(loss / tokens), tokens, window, seconds, tokensPerSecond: tokens / seconds };
}

/** @internal Negative log-likelihood of a window's predictions, in f64. */
export interface WindowLoss {
  readonly total: number;
  /** Predictions. */
  readonly tokens: number;
}

/** @internal What `perplexity` is the mean of, window by window. Throws as it does. */
export async function lossesByWindow(
  model: Model,
  ids: ArrayLike<number>,
  { window = defaultWindow(model), signal, onProgress }: PerplexityOptions = {},
): Promise<WindowLoss[]> {
  checkWorkOptions({ signal, onProgress });
  checkWindow(model, window);
  const windows = cutWindows(ids, window);
  if (windows.length === 0) throw expectedCount('at least two tokens', 'ids', `${ids.length} tokens`);
  const total = windows.reduce((sum, ids) => sum + ids.length, 0);
  const found: WindowLoss[] = [];
  let done = 0;
  await forEachBatch(model, windows, signal, async (batch, hidden) => {
    const losses = await tokenLosses(model, batch, hidden, signal);
    let begin = 0;
    for (const { length } of batch) {
      const own = losses.slice(begin, begin + length - 1);
      found.push({ total: own.reduce((sum, value) => sum + value, 0), tokens: own.length });
      begin += length - 1;
      done += length;
    }
    onProgress?.({ done, total });
  });
  return found;
}

async function tokenLosses(
  model: Model,
  windows: readonly number[][],
  hidden: Tensor,
  signal: AbortSignal | undefined,
): Promise<number[]> {
  const { targets, scored } = predictions(windows);
  const losses: number[] = [];
  for (const { rows, begin, end } of rowsOfLogits(hidden)) {
    using wanted = model.device.tensor('i32', targets.subarray(begin, end));
    using out = model.device.empty('f64', [end - begin]);
    await model.turn(signal, async (context) => {
      const logits = await model.logits(context, rows);
      await awaitNative(() => model.device.native.crossEntropy(logits.native, wanted.native, out.native));
    });
    const values = await out.read();
    values.forEach((value, i) => {
      if (scored[begin + i]) losses.push(value);
    });
  }
  return losses;
}
