import { expected, throwIfAborted } from '../errors.ts';
import { awaitNative } from '../native.ts';
import type { Tensor } from '../tensor.ts';
import { batchOfSequences } from './batch.ts';
import type { Model } from './model.ts';

export interface PerplexityOptions {
  /** Tokens of a window; by default 256. At most the model's context. */
  readonly window?: number | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Called after every piece of work, in tokens through all layers. */
  readonly onProgress?: ((progress: { readonly done: number; readonly total: number }) => void) | undefined;
}

export interface Perplexity {
  /** exp(mean negative log-likelihood) */
  readonly perplexity: number;
  /** Predictions that were scored. */
  readonly tokens: number;
  readonly window: number;
  readonly seconds: number;
  readonly tokensPerSecond: number;
}

/** Non-overlapping windows of a token sequence; the last may be shorter, and counts from two tokens on. */
export function cutWindows(ids: ArrayLike<number>, window: number): number[][] {
  const all = Array.from(ids);
  const windows: number[][] = [];
  for (let begin = 0; begin < all.length; begin += window) windows.push(all.slice(begin, begin + window));
  if ((windows.at(-1)?.length ?? 2) < 2) windows.pop();
  return windows;
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
  checkWindow(model, window);
  const windows = cutWindows(ids, window);
  if (windows.length === 0) throw expected('at least two tokens', 'ids', `${ids.length} tokens`);
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

/** Tokens that attend to each other where nothing else is asked for: 256, or the context where that is shorter. */
export function defaultWindow(model: Model): number {
  return Math.min(256, model.spec.contextLength);
}

/** @internal Throws unless windows of this length fit the model. */
export function checkWindow(model: Model, window: number): void {
  if (!Number.isSafeInteger(window) || window < 2 || window > model.spec.contextLength) {
    throw expected(
      `an integer from 2 to ${model.spec.contextLength} (the model's context)`,
      'window',
      window,
    );
  }
}

/** Tokens that go through a layer together: enough for full matrix products, few enough for memory. */
const BATCH_TOKENS = 4096;
/** Rows of logits at a time: a vocabulary is large. */
const LOGIT_ROWS = 512;

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
  const perRound = model.streams ? windows.length : windowsPerBatch(windows);
  for (let begin = 0; begin < windows.length; begin += perRound) {
    const round = windows.slice(begin, begin + perRound);
    using hidden = await model.turn(signal, (context) => model.embed(context, round.flat()));
    for (let index = 0; index < model.spec.numLayers; index++) {
      await model.withLayer(index, async (layer) => {
        for (const { part, rows } of batches(round)) {
          using x = hidden.rows(...rows);
          const batch = batchOfSequences(
            model.device,
            part.map((ids) => ids.length),
          );
          using _ = batch.positions;
          await model.turn(signal, (context) => layer.forward(context, x, batch));
        }
      });
    }
    for (const { part, rows } of batches(round)) {
      throwIfAborted(signal);
      using x = hidden.rows(...rows);
      await visit(part, x);
    }
  }
}

function windowsPerBatch(windows: readonly number[][]): number {
  return Math.max(1, Math.floor(BATCH_TOKENS / (windows[0]?.length ?? 1)));
}

/** Windows that go together, with the rows that they have in the hidden states. */
function* batches(
  windows: readonly number[][],
): Generator<{ part: readonly number[][]; rows: [number, number] }> {
  const step = windowsPerBatch(windows);
  let row = 0;
  for (let begin = 0; begin < windows.length; begin += step) {
    const part = windows.slice(begin, begin + step);
    const end = row + part.reduce((sum, ids) => sum + ids.length, 0);
    yield { part, rows: [row, end] };
    row = end;
  }
}

/** @internal Rows of `hidden` that predict something, and what: all but the last of each window. */
export function predictions(windows: readonly number[][]): { targets: Int32Array; scored: boolean[] } {
  const targets: number[] = [];
  const scored: boolean[] = [];
  for (const ids of windows) {
    ids.forEach((_, i) => {
      const next = ids[i + 1];
      targets.push(next ?? 0);
      scored.push(next !== undefined);
    });
  }
  return { targets: Int32Array.from(targets), scored };
}

/** @internal Hidden states, the rows of which have logits that fit into memory together. */
export function* rowsOfLogits(
  hidden: Tensor,
): Generator<{ readonly rows: Tensor; readonly begin: number; readonly end: number }> {
  const count = hidden.shape[0] as number;
  for (let begin = 0; begin < count; begin += LOGIT_ROWS) {
    const end = Math.min(count, begin + LOGIT_ROWS);
    using rows = hidden.rows(begin, end);
    yield { rows, begin, end };
  }
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
