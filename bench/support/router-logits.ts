import type { Route } from '../../lib/bench/batches.ts';

/** Router logits [T, N] whose top K, and softmax over them, are a route's ids and weights: for peers that route themselves. */
export function routerLogits({ ids, weights }: Route, numExperts: number, topK: number): Float32Array {
  const logits = new Float32Array((ids.length / topK) * numExperts).fill(-20);
  ids.forEach((expert, slot) => {
    logits[Math.floor(slot / topK) * numExperts + expert] = Math.log(weights[slot] as number);
  });
  return logits;
}
