import { type Ceilings, mapCeilings, measureCeilings } from './ceilings.ts';
import { type Call, type Effort, type Stats, statistics, takeTurns } from './timing.ts';

/** A timing, and the rates that the machine could have had meanwhile. */
export interface Timing {
  readonly stats: Stats;
  readonly ceilings: Ceilings;
}

/** Calls that take longer have a measurement of the ceilings before and after each of them. */
const MEASURE_EVERY_MS = 250;
/** Measurements before and after what is not timed in turns. */
const MEASURED_AROUND = 3;

/** Times things and, in turns with them, what the machine can do at best: it is shared, and its speed changes within seconds. */
export class Yardstick {
  readonly threads: number;
  /** What the machine could do during each timing. */
  readonly measured: Ceilings[] = [];

  constructor(threads: number) {
    this.threads = threads;
  }

  /** Times several things in turns with each other and with the ceilings. */
  async timeTogether<Name extends string>(
    calls: Readonly<Record<Name, Call>>,
    effort: Effort,
  ): Promise<Record<Name, Timing>> {
    const ceilings: Ceilings[] = [];
    const before = Object.fromEntries(Object.keys(calls).map((name) => [name, []])) as unknown as Record<
      Name,
      number[]
    >;
    let measuredAt = Number.NEGATIVE_INFINITY;
    const times = await takeTurns(calls, effort, async (name) => {
      if (performance.now() - measuredAt > MEASURE_EVERY_MS) {
        ceilings.push(await this.#measure());
        measuredAt = performance.now();
      }
      before[name].push(ceilings.length - 1);
    });
    ceilings.push(await this.#measure());
    this.measured.push(mapCeilings(ceilings, median));
    const timings = (Object.keys(calls) as Name[]).map((name) => {
      const around = before[name].map((i) => mapCeilings(ceilings.slice(i, i + 2), mean));
      return [name, holdAgainst(times[name], around)];
    });
    return Object.fromEntries(timings) as Record<Name, Timing>;
  }

  /** For what takes its time by itself: the ceilings are those before and after it. */
  async around(run: () => Promise<Stats>): Promise<Timing> {
    const before = await this.#measureSome();
    const stats = await run();
    const after = await this.#measureSome();
    const ceilings = mapCeilings([before, after], mean);
    this.measured.push(ceilings);
    return { stats, ceilings };
  }

  async #measureSome(): Promise<Ceilings> {
    const some: Ceilings[] = [];
    while (some.length < MEASURED_AROUND) some.push(await this.#measure());
    return mapCeilings(some, median);
  }

  #measure(): Promise<Ceilings> {
    return measureCeilings({ threads: this.threads });
  }
}

/**
 * A timing in which each sample is held against the ceilings around it. The ceilings of all are such that work over the
 * median time is the same share of them as, in the median, the work of a sample is of what could have been done in its
 * time: a machine that is slow for one sample is so for both sides.
 *
 * @param times of the samples, in milliseconds
 * @param around the ceilings around each of them
 */
export function holdAgainst(times: readonly number[], around: readonly Ceilings[]): Timing {
  const stats = statistics(times);
  const ceilings = mapCeilings(
    around,
    (rates) => median(rates.map((rate, i) => rate * (times[i] as number))) / stats.medianMs,
  );
  return { stats, ceilings };
}

/** Lowest and highest of each: how much the machine was disturbed. */
export type CeilingsSpread = Readonly<Record<keyof Ceilings, readonly [number, number]>>;

export function medianCeilings(measured: readonly Ceilings[]): Ceilings {
  return mapCeilings(measured, median);
}

export function ceilingsSpread(measured: readonly Ceilings[]): CeilingsSpread {
  const lowest = mapCeilings(measured, (values) => Math.min(...values));
  const highest = mapCeilings(measured, (values) => Math.max(...values));
  return {
    fmaGflops: [lowest.fmaGflops, highest.fmaGflops],
    sgemmGflops: [lowest.sgemmGflops, highest.sgemmGflops],
    readGBps: [lowest.readGBps, highest.readGBps],
  };
}

function median(values: readonly number[]): number {
  return statistics(values).medianMs;
}

function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}
