import { checkThreads, type DeviceOptions } from '../device.ts';
import { awaitNative, native } from '../native.ts';

/** What this machine can do at best: what speeds are held against, measured in the same run. */
export interface Ceilings {
  /** Independent f32 fused multiply-adds on registers, in 10⁹ floating-point operations a second: the best burst. */
  readonly fmaGflops: number;
  /** OpenBLAS sgemm of 2048³, on its own threads or cut into rows for ours: the median call of the faster. */
  readonly sgemmGflops: number;
  /** Summing a buffer much larger than the caches, in 10⁹ bytes a second: the best pass. */
  readonly readGBps: number;
}

/** Measures the CPU's ceilings, in one to two seconds, on the device's queue: other work on the CPU waits meanwhile. */
export async function measureCeilings({ threads = 0 }: DeviceOptions = {}): Promise<Ceilings> {
  checkThreads(threads);
  return awaitNative(() => native().measureCeilings(threads));
}
