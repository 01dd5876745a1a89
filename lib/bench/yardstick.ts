import { type Ceilings, measureCeilings } from './ceilings.ts';

/** What the machine could do while something ran. The machine is shared and its speed drifts, so it is asked again and again. */
export class Yardstick {
  readonly threads: number;
  /** Everything measured so far. */
  readonly measured: Ceilings[] = [];
  #latest: Ceilings | undefined;
  #latestAt = 0;
  readonly #freshSeconds: number;

  /** @param freshSeconds ceilings younger than this need not be measured again */
  constructor(threads: number, freshSeconds: number) {
    this.threads = threads;
    this.#freshSeconds = freshSeconds;
  }

  /** Runs between two measurements, and gives the better of both with the result. */
  async around<Result>(run: () => Promise<Result>): Promise<{ result: Result; ceilings: Ceilings }> {
    const before = await this.#measure();
    const result = await run();
    const after = await this.#measure();
    const ceilings = {
      fmaGflops: Math.max(before.fmaGflops, after.fmaGflops),
      sgemmGflops: Math.max(before.sgemmGflops, after.sgemmGflops),
      readGBps: Math.max(before.readGBps, after.readGBps),
    };
    return { result, ceilings };
  }

  async #measure(): Promise<Ceilings> {
    if (!this.#latest || performance.now() - this.#latestAt > 1000 * this.#freshSeconds) {
      this.#latest = await measureCeilings({ threads: this.threads });
      this.#latestAt = performance.now();
      this.measured.push(this.#latest);
    }
    return this.#latest;
  }
}

/** Lowest and highest of each: how much the machine was disturbed. */
export type CeilingsSpread = Readonly<Record<keyof Ceilings, readonly [number, number]>>;

export function medianCeilings(measured: readonly Ceilings[]): Ceilings {
  return eachSorted(measured, (values) => values[values.length >> 1] as number);
}

export function ceilingsSpread(measured: readonly Ceilings[]): CeilingsSpread {
  return eachSorted(measured, (values) => [values[0] as number, values.at(-1) as number] as const);
}

function eachSorted<Value>(measured: readonly Ceilings[], of: (sorted: readonly number[]) => Value) {
  const sorted = (name: keyof Ceilings) => measured.map((c) => c[name]).sort((a, b) => a - b);
  return {
    fmaGflops: of(sorted('fmaGflops')),
    sgemmGflops: of(sorted('sgemmGflops')),
    readGBps: of(sorted('readGBps')),
  };
}
