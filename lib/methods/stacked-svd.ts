import { factorizeExperts } from '../factorization/factorize.ts';
import { denseExperts, replaceExperts } from './experts.ts';
import type { Method } from './method.ts';
import { planSizes } from './sizes.ts';

/** The paper's (arXiv 2503.23100): the best shared basis for the weights of a group. */
export const stackedSvd: Method = {
  name: 'stacked-svd',
  summary: "the paper's: one basis for the stacked weights of each group",
  grouped: true,
  weightsOnly: true,
  check: (request) => void planSizes(request),
  async prepare(request) {
    const { groupSize, latentSize } = planSizes(request);
    return {
      groupSize,
      async compress(layer) {
        const experts = await factorizeExperts(denseExperts(layer), {
          groupSize,
          latentSize,
          signal: request.signal,
        });
        return replaceExperts(layer, experts);
      },
    };
  },
};

/** The same with a basis for each expert: truncated SVD. */
export const svd: Method = {
  name: 'svd',
  summary: 'truncated SVD of each expert',
  grouped: false,
  weightsOnly: true,
  check: (request) => stackedSvd.check({ ...request, groupSize: 1 }),
  prepare: (request) => stackedSvd.prepare({ ...request, groupSize: 1 }),
};
