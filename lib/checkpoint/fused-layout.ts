import type { Family, MoeSpec } from './family.ts';
import type { Shards } from './shards.ts';

/**
 * The family as this checkpoint stores it. transformers 5 keeps the experts of a layer in two tensors,
 * `experts.gate_up_proj` [N, 2m, n] (gate above up) and `experts.down_proj` [N, n, m]; most checkpoints on disk have a
 * tensor for each matrix, but some tools save what is in memory.
 */
export function storedLayout(family: Family, spec: MoeSpec, shards: Shards): Family {
  const [layer] = spec.layers;
  if (layer === undefined || family.expertSlice !== undefined) return family;
  const experts = `${family.expertsPrefix(layer)}.experts`;
  const isFused = ['gate_up_proj', 'down_proj'].some((name) => shards.tensors.has(`${experts}.${name}`));
  return isFused ? fusedLayout(family) : family;
}

function fusedLayout(family: Family): Family {
  return {
    ...family,
    expertTensor: (layer, _expert, operator) =>
      `${family.expertsPrefix(layer)}.experts.${operator === 'down' ? 'down_proj' : 'gate_up_proj'}`,
    expertSlice: stackedSlice,
  };
}

/** Where an expert lies in [N, 2m, n] with gate above up, or for down in [N, n, m]. */
export const stackedSlice: NonNullable<Family['expertSlice']> = (
  { numExperts: count, intermediateSize: m, hiddenSize: n },
  expert,
  operator,
) => {
  if (operator === 'down') return { shape: [count, n, m], elementOffset: expert * n * m };
  const half = operator === 'up' ? 1 : 0;
  return { shape: [count, 2 * m, n], elementOffset: (2 * expert + half) * m * n };
};
