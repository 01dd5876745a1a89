import Benchmark from 'benchmark';
import { type Call, type Effort, once, type Stats, statistics } from '../../lib/bench/timing.ts';

/** Whether a call takes so little that Benchmark.js has to repeat it. */
export async function isShort(call: Call): Promise<boolean> {
  await once(call);
  return (await once(call)) < 2;
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
