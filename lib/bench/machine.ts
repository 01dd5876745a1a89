import { cpus, totalmem } from 'node:os';
import type { DeviceInfo } from '../device.ts';

/** Whose speed it is. */
export interface Machine {
  readonly cpu: string;
  readonly processors: number;
  readonly features: readonly string[];
  readonly memoryBytes: number;
  readonly library: string;
  readonly node: string;
  readonly platform: string;
}

export function describeMachine({ name, features, library }: DeviceInfo): Machine {
  return {
    cpu: name,
    processors: cpus().length,
    features,
    memoryBytes: totalmem(),
    library,
    node: process.version,
    platform: `${process.platform}-${process.arch}`,
  };
}
