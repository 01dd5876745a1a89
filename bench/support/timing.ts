import Benchmark from 'benchmark';
import {
  type Call,
  type Effort,
  once,
  type Stats,
  statistics,
  timeTogether,
} from '../../lib/bench/timing.ts';

/** Times one thing: its own loop where a call takes a while, Benchmark.js where it does not. */
export async function time(call: Call, effort: Effort): Promise<Stats> {
  await once(call);
  const estimate = await once(call);
  return estimate < 2 ? timeCalls(call, effort) : ((await timeTogether({ call }, effort)).call as Stats);
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
