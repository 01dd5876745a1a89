import type { Operator } from '../../operators.ts';

/** What is factorized, and who shares. */
export interface CalibratedForm {
  readonly groupSize: number;
  /** By default all. */
  readonly operators?: readonly Operator[] | undefined;
  readonly sharedGateUp?: boolean | undefined;
}

/**
 * k where nothing is said: each expert for itself computes least, and lost no more than any larger group where latent
 * sizes go where they are worth most (docs/choosing.md).
 */
export const CALIBRATED_GROUP_SIZE = 1;
