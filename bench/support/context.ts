import type { Ceilings } from '../../lib/bench/ceilings.ts';
import { type Row as MachineRow, type Measured, makeRow } from '../../lib/bench/row.ts';
import type { Call, Effort, Stats } from '../../lib/bench/timing.ts';
import { type Timing, Yardstick } from '../../lib/bench/yardstick.ts';
import type { Device } from '../../lib/device.ts';
import type { PeerResult } from './peers.ts';
import { isShort, timeCalls } from './timing.ts';

/** A figure held against a goal of the design. */
export interface Goal {
  readonly what: string;
  readonly value: number;
  readonly must: number;
  readonly aim: number;
  readonly met: 'aim' | 'must' | 'no';
}

/** A row of the short bench of the package, with what only this one knows. */
export interface Row extends MachineRow {
  readonly question: string;
  /** When, in ISO 8601: a file has rows of several runs. Those of old files do not know. */
  readonly measured?: string;
  readonly peers: Readonly<Record<string, Peer>>;
  readonly goals: readonly Goal[];
  /** Relative error against the f64 reference. */
  readonly relativeError: number | null;
  /** What else belongs to the row: figures that plots need, sizes that were scaled down. */
  readonly data: Readonly<Record<string, number | string>>;
}

/** `speedup` is the peer's time over ours: above 1 we are faster. */
type Peer = (Stats & { readonly speedup: number; readonly version?: string }) | { readonly absent: string };

interface RowInit extends Measured, Partial<Pick<Row, 'relativeError' | 'data'>> {
  readonly peers?: Readonly<Record<string, PeerResult>>;
  readonly goals?: (row: Pick<Row, 'ofCeiling' | 'ofFma' | 'ofSgemm' | 'ofRead'>) => readonly Goal[];
}

/** One file, one question. */
export interface Question {
  readonly name: string;
  readonly asks: string;
  /** About what it takes on two cores of 90 GFLOP/s, peers included. */
  readonly minutes: { readonly full: number; readonly quick: number };
  run(context: Context): Promise<void>;
}

/** `value` is to be at least `must`; with `atMost`, at most. */
export function goal(what: string, value: number, must: number, aim: number, atMost = false): Goal {
  const reaches = (bound: number) => (atMost ? value <= bound : value >= bound);
  return { what, value, must, aim, met: reaches(aim) ? 'aim' : reaches(must) ? 'must' : 'no' };
}

export class Context {
  readonly device: Device;
  readonly quick: boolean;
  readonly wantsPeers: boolean;
  readonly rows: Row[] = [];
  readonly #yardstick: Yardstick;
  #question = '';

  constructor(device: Device, quick: boolean, wantsPeers: boolean) {
    this.device = device;
    this.quick = quick;
    this.wantsPeers = wantsPeers;
    this.#yardstick = new Yardstick(this.threads);
  }

  get threads(): number {
    return this.device.info.threads;
  }

  get effort(): Effort {
    return this.quick ? { seconds: 0.5, minSamples: 5 } : { seconds: 2, minSamples: 9 };
  }

  get measured(): readonly Ceilings[] {
    return this.#yardstick.measured;
  }

  begin(question: string): void {
    this.#question = question;
  }

  /** Times one thing, in turns with the ceilings where a call takes a while. */
  async time(call: Call, effort: Effort = this.effort): Promise<Timing> {
    return (await isShort(call))
      ? this.timeCalls(call, effort)
      : (await this.timeTogether({ call }, effort)).call;
  }

  /** Times several things in turns with each other and with the ceilings. */
  timeTogether<Name extends string>(
    calls: Readonly<Record<Name, Call>>,
    effort: Effort = this.effort,
  ): Promise<Record<Name, Timing>> {
    return this.#yardstick.timeTogether(calls, effort);
  }

  /** Times calls by Benchmark.js, between measurements of the ceilings. */
  timeCalls(call: Call, effort: Effort = this.effort): Promise<Timing> {
    return this.#yardstick.around(() => timeCalls(call, effort));
  }

  log(text: string): void {
    process.stderr.write(`${text}\n`);
  }

  add(init: RowInit): Row {
    const machineRow = makeRow(init, this.threads);
    const peers = Object.entries(init.peers ?? {}).map(([name, peer]): [string, Peer] => [
      name,
      'absent' in peer ? peer : { ...peer, speedup: peer.medianMs / machineRow.medianMs },
    ]);
    const row: Row = {
      question: this.#question,
      measured: new Date().toISOString(),
      ...machineRow,
      peers: Object.fromEntries(peers),
      goals: init.goals?.(machineRow) ?? [],
      relativeError: init.relativeError ?? null,
      data: init.data ?? {},
    };
    this.rows.push(row);
    this.log(`  ${row.name} ${row.shape} ${row.dtype}: ${row.medianMs.toPrecision(3)} ms`);
    return row;
  }
}
