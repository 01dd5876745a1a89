import { checkCallback } from '../errors.ts';

/** Which experts share, and how the work is watched and stopped: of every way to factorize a layer. */
export interface GroupedWork {
  /** k: consecutive experts 0…k−1, k…2k−1, … share a basis. Must divide the number of experts. */
  readonly groupSize?: number | undefined;
  /** Explicit groups instead, a partition of the experts. */
  readonly groups?: readonly (readonly number[])[] | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Called after each expert of each pass. */
  readonly onProgress?: ((progress: FactorizeProgress) => void) | undefined;
}

/** How far the factorization of a layer is. */
export interface FactorizeProgress {
  /** Experts passed so far, over all passes, operators and groups. */
  readonly done: number;
  readonly total: number;
}

/** @internal Counts steps for a listener. */
export function progressCounter(onProgress: GroupedWork['onProgress'], total: number): () => void {
  checkCallback(onProgress, 'onProgress');
  let done = 0;
  return () => {
    done++;
    onProgress?.({ done, total });
  };
}
