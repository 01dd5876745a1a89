import type { Work } from '../../lib/bench/batches.ts';
import { statistics } from '../../lib/bench/timing.ts';

/** What one build did in one turn. */
export interface Turn {
  /** Median time of a batch through a layer. */
  readonly ms: number;
  /** Of a batch, on average. */
  readonly work: Work;
}

export interface Comparison {
  readonly beforeMs: number;
  readonly nowMs: number;
  readonly work: Work;
  /** Time before over time now, above 1 where now is faster: of the turns of each round, which follow each other. */
  readonly speedup: { readonly median: number; readonly low: number; readonly high: number };
  /** Rounds in which now was faster. */
  readonly won: number;
  readonly rounds: number;
}

/**
 * Two builds by their turns, round by round. What slows the machine for longer than a round slows both turns of it, so it
 * falls out of their ratio; what slows one turn only is one round of many.
 */
export function compareTurns(before: readonly Turn[], now: readonly Turn[]): Comparison {
  const ratios = before.map(({ ms }, round) => ms / (now[round] as Turn).ms);
  const { medianMs: median } = statistics(ratios);
  return {
    beforeMs: statistics(before.map(({ ms }) => ms)).medianMs,
    nowMs: statistics(now.map(({ ms }) => ms)).medianMs,
    work: (now[0] as Turn).work,
    speedup: { median, low: Math.min(...ratios), high: Math.max(...ratios) },
    won: ratios.filter((ratio) => ratio > 1).length,
    rounds: ratios.length,
  };
}
