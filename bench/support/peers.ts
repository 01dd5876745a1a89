import type { Call, Stats } from '../../lib/bench/timing.ts';
import { Failure } from './failure.ts';
import type { TurnProcess } from './turn-process.ts';

/** How a peer fared in the same turns as molae, or why there is none. */
export type PeerResult = (Stats & { readonly version?: string }) | Absent;

export interface Absent {
  readonly absent: string;
}

/** A peer, or one of the ways in which a process does the same. */
export interface Peer {
  readonly version: string;
  readonly call: Call;
}

/** Those that one thing is timed against, in processes that live until this is disposed. */
export class Peers<Name extends string> {
  readonly #peers: readonly [Name, Peer | Absent][];
  readonly #processes: readonly (Disposable | Absent)[];

  constructor(peers: Readonly<Record<Name, Peer | Absent>>, processes: readonly (Disposable | Absent)[]) {
    this.#peers = Object.entries(peers) as [Name, Peer | Absent][];
    this.#processes = processes;
  }

  /** A turn of each that is there. */
  get calls(): Readonly<Record<string, Call>> {
    const present = this.#peers.flatMap(([name, peer]) => ('absent' in peer ? [] : [[name, peer.call]]));
    return Object.fromEntries(present);
  }

  /** `stats` of the turns of each that is there. */
  results(stats: (name: Name) => Stats): Readonly<Record<Name, PeerResult>> {
    const results = this.#peers.map(([name, peer]): [Name, PeerResult] => [
      name,
      'absent' in peer ? peer : { ...stats(name), version: peer.version },
    ]);
    return Object.fromEntries(results) as Record<Name, PeerResult>;
  }

  [Symbol.dispose](): void {
    for (const process of this.#processes) {
      if (!('absent' in process)) process[Symbol.dispose]();
    }
  }
}

/** A process that is ready, or why there is none: benches do without. */
export async function orAbsent<Ready>(
  start: () => Promise<TurnProcess<Ready>>,
): Promise<TurnProcess<Ready> | Absent> {
  try {
    return await start();
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    return { absent: error.message.slice(0, 200) };
  }
}

/** The peer of a process that does one thing. */
export function onlyWay(process: TurnProcess<{ readonly version: string }> | Absent): Peer | Absent {
  return 'absent' in process ? process : { version: process.ready.version, call: () => process.time() };
}
