import type { Stats } from './timing.ts';
import type { Timing } from './yardstick.ts';

/** What was timed, and how much useful work one call does, where that is defined. */
export interface Measured {
  readonly name: string;
  readonly shape: string;
  readonly dtype: string;
  readonly tokens?: number | null;
  readonly flops?: number | null;
  readonly bytes?: number | null;
  readonly timing: Timing;
}

/** A timing held against the machine's ceilings. */
export interface Row extends Stats {
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
}

export function makeRow(
  { name, shape, dtype, tokens = null, flops = null, bytes = null, timing }: Measured,
  threads: number,
): Row {
  const { stats, ceilings } = timing;
  const gflops = flops === null ? null : flops / stats.medianMs / 1e6;
  const gbps = bytes === null ? null : bytes / stats.medianMs / 1e6;
  const share = (value: number | null, of: number) => (value === null ? null : value / of);
  const ofFma = share(gflops, ceilings.fmaGflops);
  const ofRead = share(gbps, ceilings.readGBps);
  return {
    name,
    shape,
    tokens,
    dtype,
    threads,
    ...stats,
    flops,
    bytes,
    gflops,
    gbps,
    ofCeiling: ofFma === null && ofRead === null ? null : Math.max(ofFma ?? 0, ofRead ?? 0),
    ofFma,
    ofSgemm: share(gflops, ceilings.sgemmGflops),
    ofRead,
  };
}
