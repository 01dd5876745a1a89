import { factorizeCalibrated } from '../factorization/calibrated.ts';
import { denseExperts, replaceExperts } from './experts.ts';
import type { Method } from './method.ts';
import { planSizes } from './sizes.ts';

/**
 * SVD-LLM (arXiv 2403.07378), each expert by itself: truncated SVD of W S, S Sᵀ the second moment of what the matrix gets
 * to see on calibration text. For down we take the leading directions of its outputs: those are the left singular
 * vectors of W S, so the factors are the same.
 *
 * Simplified: nothing is updated afterwards (their second step, SVD-LLM (U)). Different: tokens count with their squared
 * routing weight, as they do in the layer's output.
 */
export const whitenedSvd: Method = {
  name: 'whitened-svd',
  summary: 'SVD-LLM: truncated SVD of each expert in the norm of its inputs',
  grouped: false,
  check: (request) => void planSizes({ ...request, groupSize: 1 }),
  async prepare(request) {
    const { groupSize, latentSize } = planSizes({ ...request, groupSize: 1 });
    return {
      groupSize,
      async compress(layer) {
        const experts = await factorizeCalibrated(denseExperts(layer), layer, {
          groupSize,
          latentSize,
          weighRows: false,
          signal: request.signal,
        });
        return replaceExperts(layer, experts);
      },
    };
  },
};
