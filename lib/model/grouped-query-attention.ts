import type { Tensor } from '../tensor.ts';
import type { LayerContext, Projection, QueryKeyValue, QueryKeyValueProjection } from './attention.ts';
import type { Batch } from './batch.ts';
import { rotaryMagnitude } from './rotary.ts';

export interface GroupedQueryWeights {
  readonly query: Projection;
  readonly key: Projection;
  readonly value: Projection;
  readonly queryNorm: Tensor | undefined;
  readonly keyNorm: Tensor | undefined;
}

/** Queries, keys and values as projections of the input; perhaps normalized, then rotated. */
export class GroupedQueryProjection implements QueryKeyValueProjection {
  readonly #weights: GroupedQueryWeights;

  constructor(weights: GroupedQueryWeights) {
    this.#weights = weights;
  }

  project(
    { spec, operations, frequencies }: LayerContext,
    h: Tensor,
    batch: Batch,
    { q, k, v }: QueryKeyValue,
  ): void {
    const { query, key, value, queryNorm, keyNorm } = this.#weights;
    operations.linear(h, query.weight, query.bias, q);
    operations.linear(h, key.weight, key.bias, k);
    operations.linear(h, value.weight, value.bias, v);
    if (queryNorm) operations.rmsNorm(q, queryNorm, spec.rmsNormEps, q);
    if (keyNorm) operations.rmsNorm(k, keyNorm, spec.rmsNormEps, k);
    const { heads, kvHeads, headSize } = spec.attention;
    const { neighbours } = spec.rotary;
    const rotary = { headSize, offset: 0, neighbours, magnitude: rotaryMagnitude(spec.rotary) };
    operations.rotary(q, batch.positions, frequencies, { ...rotary, heads });
    operations.rotary(k, batch.positions, frequencies, { ...rotary, heads: kvHeads });
  }
}
