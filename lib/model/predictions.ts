import type { Tensor } from '../tensor.ts';

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

/** Rows of logits at a time: a vocabulary is large. */
const LOGIT_ROWS = 512;

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
