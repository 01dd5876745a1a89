import { checkGroupSize } from '../factorization/groups.ts';
import { checkSizes } from './sizes.ts';

/**
 * p = 1 − C(N−k, K) / C(N, K): the probability that one of a token's K experts is in a given group of k, with all
 * K-subsets equally likely. As a product of at most min(k, K) ratios, for binomials overflow.
 */
export function groupProbability(numExperts: number, groupSize: number, topK: number): number {
  // C(N−k, K) / C(N, K) is symmetric in k and K; fewer factors round less.
  const factors = Math.min(groupSize, topK);
  const taken = Math.max(groupSize, topK);
  let missed = 1;
  for (let j = 0; j < factors; j++) missed *= Math.max(0, numExperts - taken - j) / (numExperts - j);
  return 1 - missed;
}

/**
 * E = G · p: how many distinct groups a token's K experts fall into on average, under uniform routing.
 *
 * @param groupSize k, a divisor of N.
 */
export function distinctGroups(numExperts: number, groupSize: number, topK: number): number {
  checkSizes({ hiddenSize: 1, intermediateSize: 1, numExperts, topK });
  checkGroupSize(numExperts, groupSize);
  return (numExperts / groupSize) * groupProbability(numExperts, groupSize, topK);
}
