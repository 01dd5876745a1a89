import { checkThreads, type DeviceOptions } from '../device.ts';
import { awaitNative, native } from '../native.ts';

/** What this machine can do at best: what speeds are held against, measured in the same run. */
export interface Ceilings {
  /** Independent f32 fused multiply-adds on registers, in 10⁹ floating-point operations a second. */
  readonly fmaGflops: number;
  /** OpenBLAS sgemm of 2048³ on the device's threads, in 10⁹ floating-point operations a second. */
  readonly sgemmGflops: number;
  /** Summing a buffer much larger than the caches, in 10⁹ bytes a second. */
  readonly readGBps: number;
}

/**
 * Measures the CPU's ceilings once, in a tenth of a second on two cores, on the device's queue: other work on the CPU waits
 * meanwhile. The first time also takes what up to 1 GB of memory needs to come, seconds on some virtual machines.
 */
export async function measureCeilings({ threads = 0 }: DeviceOptions = {}): Promise<Ceilings> {
  checkThreads(threads);
  return awaitNative(() => native().measureCeilings(threads));
}

/** Each of them, of the same ones of several. */
export function mapCeilings(
  several: readonly Ceilings[],
  of: (values: readonly number[]) => number,
): Ceilings {
  return {
    fmaGflops: of(several.map((ceilings) => ceilings.fmaGflops)),
    sgemmGflops: of(several.map((ceilings) => ceilings.sgemmGflops)),
    readGBps: of(several.map((ceilings) => ceilings.readGBps)),
  };
}
