import Benchmark from 'benchmark';

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

async function once(call: Call): Promise<number> {
  const begin = performance.now();
  const result = call();
  if (result instanceof Promise) await result;
  return performance.now() - begin;
}

/** Times one thing: its own loop where a call takes a while, Benchmark.js where it does not. */
export async function time(call: Call, effort: Effort): Promise<Stats> {
  await once(call);
  const estimate = await once(call);
  return estimate < 2 ? timeCalls(call, effort) : ((await timeTogether({ call }, effort)).call as Stats);
}

/**
 * Times several things in turns, so that whatever disturbs the machine disturbs all of them alike. Each is warmed up
 * first; the time is spent on all together.
 */
export async function timeTogether<Name extends string>(
  calls: Readonly<Record<Name, Call>>,
  { seconds, minSamples }: Effort,
): Promise<Record<Name, Stats>> {
  const entries = Object.entries(calls) as [Name, Call][];
  const times = new Map<Name, number[]>(entries.map(([name]) => [name, []]));
  for (const [, call] of entries) await once(call);
  const end = performance.now() + 1000 * seconds * entries.length;
  for (let i = 0; i < MAX_SAMPLES && (i < minSamples || performance.now() < end); i++) {
    for (const [name, call] of entries) times.get(name)?.push(await once(call));
  }
  return Object.fromEntries(entries.map(([name]) => [name, statistics(times.get(name) ?? [])])) as Record<
    Name,
    Stats
  >;
}

/**
 * Call-level timing by Benchmark.js. Its samples are means over a cycle of many calls, so the quantiles say how cycles
 * differ; `timeEachCall` has the quantiles of single calls.
 */
export function timeCalls(call: Call, { seconds, minSamples }: Effort): Promise<Stats> {
  return new Promise((resolve, reject) => {
    const settings = { maxTime: seconds, minSamples, onComplete, onError };
    const asynchronous = call() instanceof Promise;
    const benchmark = asynchronous
      ? new Benchmark('call', {
          ...settings,
          defer: true,
          fn: (deferred: { resolve(): void }) => {
            (call() as Promise<unknown>).then(() => deferred.resolve(), reject);
          },
        })
      : new Benchmark('call', { ...settings, fn: call });
    function onComplete() {
      if (benchmark.stats.sample.length > 0) resolve(statistics(benchmark.stats.sample.map((s) => 1000 * s)));
    }
    function onError() {
      reject((benchmark as unknown as { error: unknown }).error);
    }
    benchmark.run({ async: true });
  });
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
