import { type Ceilings, measureCeilings } from '../../lib/ceilings.ts';
import type { Device } from '../../lib/device.ts';
import type { PeerResult } from './peers.ts';
import { type Call, type Effort, type Stats, time, timeCalls, timeTogether } from './timing.ts';

/** A figure held against a goal of the design. */
export interface Goal {
  readonly what: string;
  readonly value: number;
  readonly must: number;
  readonly aim: number;
  readonly met: 'aim' | 'must' | 'no';
}

export interface Row extends Stats {
  readonly question: string;
  readonly name: string;
  readonly shape: string;
  readonly tokens: number | null;
  readonly dtype: string;
  readonly threads: number;
  /** Useful floating-point operations and bytes of one call, where they are defined. */
  readonly flops: number | null;
  readonly bytes: number | null;
  readonly gflops: number | null;
  readonly gbps: number | null;
  /** The least possible time, max(flops / FMA peak, bytes / read bandwidth), over the measured one. */
  readonly ofCeiling: number | null;
  readonly ofFma: number | null;
  readonly ofSgemm: number | null;
  readonly ofRead: number | null;
  readonly peers: Readonly<Record<string, Peer>>;
  readonly goals: readonly Goal[];
  /** Relative error against the f64 reference. */
  readonly relativeError: number | null;
  /** What else belongs to the row: figures that plots need, sizes that were scaled down. */
  readonly data: Readonly<Record<string, number | string>>;
}

/** `speedup` is the peer's time over ours: above 1 we are faster. */
export type Peer =
  | (Stats & { readonly speedup: number; readonly version?: string })
  | { readonly absent: string };

export interface RowInit extends Partial<Pick<Row, 'tokens' | 'flops' | 'bytes' | 'relativeError' | 'data'>> {
  readonly name: string;
  readonly shape: string;
  readonly dtype: string;
  readonly stats: Stats;
  readonly peers?: Readonly<Record<string, PeerResult>>;
  readonly goals?: (row: Pick<Row, 'ofCeiling' | 'ofFma' | 'ofSgemm' | 'ofRead'>) => readonly Goal[];
}

/** One file, one question. */
export interface Question {
  readonly name: string;
  readonly asks: string;
  run(context: Context): Promise<void>;
}

/** `value` is to be at least `must`; with `atMost`, at most. */
export function goal(what: string, value: number, must: number, aim: number, atMost = false): Goal {
  const reaches = (bound: number) => (atMost ? value <= bound : value >= bound);
  return { what, value, must, aim, met: reaches(aim) ? 'aim' : reaches(must) ? 'must' : 'no' };
}

/** Ceilings younger than this need not be measured again. */
const FRESH_SECONDS = 3;

export class Context {
  readonly device: Device;
  readonly quick: boolean;
  readonly wantsPeers: boolean;
  readonly rows: Row[] = [];
  readonly measured: Ceilings[] = [];
  #question = '';
  #ceilings: Ceilings | undefined;
  #latest: Ceilings | undefined;
  #latestAt = 0;

  constructor(device: Device, quick: boolean, wantsPeers: boolean) {
    this.device = device;
    this.quick = quick;
    this.wantsPeers = wantsPeers;
  }

  get threads(): number {
    return this.device.info.threads;
  }

  get effort(): Effort {
    return this.quick ? { seconds: 0.5, minSamples: 5 } : { seconds: 2, minSamples: 9 };
  }

  begin(question: string): void {
    this.#question = question;
  }

  /** Times one thing, between two measurements of the ceilings. */
  time(call: Call, effort: Effort = this.effort): Promise<Stats> {
    return this.#between(() => time(call, effort));
  }

  /** Times several things in turns, between two measurements of the ceilings. */
  timeTogether<Name extends string>(
    calls: Readonly<Record<Name, Call>>,
    effort: Effort = this.effort,
  ): Promise<Record<Name, Stats>> {
    return this.#between(() => timeTogether(calls, effort));
  }

  /** Times calls by Benchmark.js, between two measurements of the ceilings. */
  timeCalls(call: Call, effort: Effort = this.effort): Promise<Stats> {
    return this.#between(() => timeCalls(call, effort));
  }

  /** What the machine could do around the last timing. */
  get ceilings(): Ceilings {
    if (!this.#ceilings) throw new Error('Time something first: the ceilings are measured with it');
    return this.#ceilings;
  }

  /**
   * The machine is shared and its speed drifts, so rows are held against the better of what was measured just before and
   * just after.
   */
  async #between<Result>(run: () => Promise<Result>): Promise<Result> {
    const before = await this.#measure();
    const result = await run();
    const after = await this.#measure();
    this.#ceilings = {
      fmaGflops: Math.max(before.fmaGflops, after.fmaGflops),
      sgemmGflops: Math.max(before.sgemmGflops, after.sgemmGflops),
      readGBps: Math.max(before.readGBps, after.readGBps),
    };
    return result;
  }

  async #measure(): Promise<Ceilings> {
    if (!this.#latest || performance.now() - this.#latestAt > 1000 * FRESH_SECONDS) {
      this.#latest = await measureCeilings({ threads: this.threads });
      this.#latestAt = performance.now();
      this.measured.push(this.#latest);
    }
    return this.#latest;
  }

  log(text: string): void {
    process.stderr.write(`${text}\n`);
  }

  add(init: RowInit): Row {
    const { ceilings } = this;
    const { stats, flops = null, bytes = null } = init;
    const gflops = flops === null ? null : flops / stats.medianMs / 1e6;
    const gbps = bytes === null ? null : bytes / stats.medianMs / 1e6;
    const share = (value: number | null, of: number) => (value === null ? null : value / of);
    const shares = {
      ofFma: share(gflops, ceilings.fmaGflops),
      ofSgemm: share(gflops, ceilings.sgemmGflops),
      ofRead: share(gbps, ceilings.readGBps),
    };
    const ofCeiling =
      flops === null && bytes === null ? null : Math.max(shares.ofFma ?? 0, shares.ofRead ?? 0);
    const peers = Object.entries(init.peers ?? {}).map(([name, peer]): [string, Peer] => [
      name,
      'absent' in peer ? peer : { ...peer, speedup: peer.medianMs / stats.medianMs },
    ]);
    const row: Row = {
      question: this.#question,
      name: init.name,
      shape: init.shape,
      tokens: init.tokens ?? null,
      dtype: init.dtype,
      threads: this.threads,
      ...stats,
      flops,
      bytes,
      gflops,
      gbps,
      ofCeiling,
      ...shares,
      peers: Object.fromEntries(peers),
      goals: init.goals?.({ ofCeiling, ...shares }) ?? [],
      relativeError: init.relativeError ?? null,
      data: init.data ?? {},
    };
    this.rows.push(row);
    this.log(`  ${row.name} ${row.shape} ${row.dtype}: ${row.medianMs.toPrecision(3)} ms`);
    return row;
  }
}
