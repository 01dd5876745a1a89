import { setImmediate } from 'node:timers/promises';
import { throwIfAborted } from '../errors.ts';

export interface Stats {
  readonly medianMs: number;
  readonly p10Ms: number;
  readonly p90Ms: number;
  readonly p99Ms: number;
  readonly samples: number;
}

export interface Effort {
  /** Time to spend on one figure. */
  readonly seconds: number;
  readonly minSamples: number;
  readonly signal?: AbortSignal | undefined;
}

export type Call = () => unknown;

const MAX_SAMPLES = 2000;

/** Quantiles of times in milliseconds, interpolated. */
export function statistics(times: readonly number[]): Stats {
  const sorted = [...times].sort((a, b) => a - b);
  const quantile = (q: number) => {
    const at = q * (sorted.length - 1);
    const low = sorted[Math.floor(at)] as number;
    const high = sorted[Math.ceil(at)] as number;
    return low + (high - low) * (at - Math.floor(at));
  };
  return {
    medianMs: quantile(0.5),
    p10Ms: quantile(0.1),
    p90Ms: quantile(0.9),
    p99Ms: quantile(0.99),
    samples: sorted.length,
  };
}

/** What a call resolves to that knows better than our clock how long it took: one that asks another process. */
export class Took {
  readonly ms: number;

  constructor(ms: number) {
    this.ms = ms;
  }
}

/** How long a call takes, in milliseconds. */
export async function once(call: Call): Promise<number> {
  const begin = performance.now();
  let result = call();
  if (result instanceof Promise) result = await result;
  return result instanceof Took ? result.ms : performance.now() - begin;
}

/**
 * Runs several things in turns, so that whatever disturbs the machine disturbs all of them alike, and gives how long each
 * took each time, in milliseconds. Each is warmed up first; the time is spent on all together.
 *
 * @param before runs before each call that counts, and is not timed
 */
export async function takeTurns<Name extends string>(
  calls: Readonly<Record<Name, Call>>,
  { seconds, minSamples, signal }: Effort,
  before: (name: Name) => Promise<void> = async () => undefined,
): Promise<Record<Name, number[]>> {
  const entries = Object.entries(calls) as [Name, Call][];
  const times = Object.fromEntries(entries.map(([name]) => [name, []])) as unknown as Record<Name, number[]>;
  for (const [, call] of entries) await once(call);
  const budget = 1000 * seconds * entries.length;
  let spent = 0;
  for (let i = 0; i < MAX_SAMPLES && (i < minSamples || spent < budget); i++) {
    for (const [name, call] of entries) {
      await before(name);
      const took = await once(call);
      times[name].push(took);
      spent += took;
    }
    // Calls on this thread keep signals waiting.
    if (signal) await setImmediate();
    throwIfAborted(signal);
  }
  return times;
}

/** Every call timed on its own. */
export async function timeEachCall(call: Call, count: number): Promise<Stats> {
  const times = new Array<number>(count);
  for (let i = 0; i < count / 10; i++) await once(call);
  if (call() instanceof Promise) {
    for (let i = 0; i < count; i++) {
      const begin = performance.now();
      await call();
      times[i] = performance.now() - begin;
    }
  } else {
    for (let i = 0; i < count; i++) {
      const begin = performance.now();
      call();
      times[i] = performance.now() - begin;
    }
  }
  return statistics(times);
}
