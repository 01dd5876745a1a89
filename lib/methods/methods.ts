import { calibratedAffinity } from './calibrated/affinity.ts';
import { calibrated, calibrated4Bits, calibrated8Bits, calibratedUniform } from './calibrated/calibrated.ts';
import { stackedSvdControl } from './control.ts';
import { d2Moe } from './d2-moe.ts';
import { hcSmoe } from './hc-smoe.ts';
import type { Method } from './method.ts';
import { reap } from './reap.ts';
import { roundTo4Bits, roundTo8Bits } from './round-to-nearest.ts';
import { stackedSvd, svd } from './stacked-svd.ts';
import { whitenedSvd } from './whitened-svd.ts';

/** All of them, ours last. */
export const METHODS: readonly Method[] = [
  stackedSvd,
  stackedSvdControl,
  svd,
  whitenedSvd,
  d2Moe,
  hcSmoe,
  reap,
  roundTo8Bits,
  roundTo4Bits,
  calibratedUniform,
  calibrated,
  calibratedAffinity,
  calibrated8Bits,
  calibrated4Bits,
];
