import type { DecoderSpec } from '../checkpoint/decoder-spec.ts';
import { expected, MolaeError } from '../errors.ts';

/** A model, or what is known of one before it is loaded. */
interface WithContext {
  readonly spec: Pick<DecoderSpec, 'contextLength'>;
}

/** Tokens that attend to each other where nothing else is asked for: 256, or the context where that is shorter. */
export function defaultWindow({ spec }: WithContext): number {
  return Math.min(256, spec.contextLength);
}

/** @internal Throws for a context in which nothing follows. */
export function checkContext({ spec: { contextLength } }: WithContext): void {
  if (contextLength > 1) return;
  throw new MolaeError(
    'UNSUPPORTED_CHECKPOINT',
    "The model's context is a single token: there is no other that it could predict",
  );
}

/** @internal Throws unless windows of this length fit the model. */
export function checkWindow(model: WithContext, window: number): void {
  checkContext(model);
  const { contextLength } = model.spec;
  if (!Number.isSafeInteger(window) || window < 2 || window > contextLength) {
    throw expected(`an integer from 2 to ${contextLength} (the model's context)`, 'window', window);
  }
}

/** Non-overlapping windows of a token sequence; the last may be shorter, and counts from two tokens on. */
export function cutWindows(ids: ArrayLike<number>, window: number): number[][] {
  const all = Array.from(ids);
  const windows: number[][] = [];
  for (let begin = 0; begin < all.length; begin += window) windows.push(all.slice(begin, begin + window));
  if ((windows.at(-1)?.length ?? 2) < 2) windows.pop();
  return windows;
}

/** Evenly spaced windows of a text, `tokens` of it at most (one window at least); all of it where it is no longer. */
export function sampleWindows(ids: ArrayLike<number>, tokens: number, window: number): number[] {
  return splitWindows(ids, tokens, window).sample;
}

/** @internal What `sampleWindows` takes of a text, and what it leaves, in order. */
export function splitWindows(
  ids: ArrayLike<number>,
  tokens: number,
  window: number,
): { readonly sample: number[]; readonly rest: number[] } {
  const all = Array.from(ids);
  const wanted = Math.max(1, Math.floor(tokens / window));
  const count = Math.floor(all.length / window);
  if (count <= wanted) return { sample: all, rest: [] };
  const begins = Array.from({ length: wanted }, (_, i) => Math.floor((i * count) / wanted) * window);
  return {
    sample: begins.flatMap((begin) => all.slice(begin, begin + window)),
    rest: [-window, ...begins].flatMap((begin, i) => all.slice(begin + window, begins[i])),
  };
}

/** Windows that go through a layer together, with the rows that they have in the hidden states. */
export interface WindowSpan {
  readonly windows: readonly number[][];
  /** Of the windows. */
  readonly lengths: readonly number[];
  readonly begin: number;
  readonly end: number;
}

/** Tokens that go through a layer together: enough for full matrix products, few enough for memory. */
const SPAN_TOKENS = 4096;

/** @internal How many windows of this length go together. */
export function windowsPerSpan(windows: readonly number[][]): number {
  return Math.max(1, Math.floor(SPAN_TOKENS / (windows[0]?.length ?? 1)));
}

/** @internal Cuts windows, of one length but for the last, into spans. */
export function windowSpans(windows: readonly number[][]): WindowSpan[] {
  const perSpan = windowsPerSpan(windows);
  const spans: WindowSpan[] = [];
  let begin = 0;
  for (let first = 0; first < windows.length; first += perSpan) {
    const together = windows.slice(first, first + perSpan);
    const lengths = together.map((ids) => ids.length);
    const end = begin + lengths.reduce((sum, length) => sum + length, 0);
    spans.push({ windows: together, lengths, begin, end });
    begin = end;
  }
  return spans;
}
