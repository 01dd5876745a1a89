import type { Tensor } from '../tensor.ts';
import type { AttentionInput, AttentionKind, LayerContext, Projection } from './attention.ts';
import { rotaryMagnitude } from './rotary.ts';

export interface GroupedQueryWeights {
  readonly query: Projection;
  readonly key: Projection;
  readonly value: Projection;
  readonly queryNorm: Tensor | undefined;
  readonly keyNorm: Tensor | undefined;
}

/** Queries, keys and values as projections of the input; perhaps normalized, then rotated. Keys and values are cached. */
export class GroupedQueryHeads implements AttentionKind {
  readonly #weights: GroupedQueryWeights;

  constructor(weights: GroupedQueryWeights) {
    this.#weights = weights;
  }

  attend(context: LayerContext, { layer, h, batch, cache }: AttentionInput, out: Tensor): void {
    const { spec, operations, scratch, frequencies } = context;
    const { heads, kvHeads, headSize, valueSize, scale, window } = spec.attention;
    const place = cache?.append(batch.tokens);
    const q = scratch.get('query', [batch.tokens, heads * headSize]);
    const [k, v] = (place?.added ?? [
      scratch.get('key', [batch.tokens, kvHeads * headSize]),
      scratch.get('value', [batch.tokens, kvHeads * valueSize]),
    ]) as [Tensor, Tensor];

    const { query, key, value, queryNorm, keyNorm } = this.#weights;
    operations.linear(h, query.weight, query.bias, q);
    operations.linear(h, key.weight, key.bias, k);
    operations.linear(h, value.weight, value.bias, v);
    if (queryNorm) operations.rmsNorm(q, queryNorm, spec.rmsNormEps, q);
    if (keyNorm) operations.rmsNorm(k, keyNorm, spec.rmsNormEps, k);
    const { neighbours } = spec.rotary;
    const rotary = { headSize, offset: 0, neighbours, magnitude: rotaryMagnitude(spec.rotary) };
    operations.rotary(q, batch.positions, frequencies, { ...rotary, heads });
    operations.rotary(k, batch.positions, frequencies, { ...rotary, heads: kvHeads });

    const [keys, values] = (place?.all ?? [k, v]) as [Tensor, Tensor];
    const sizes = { heads, kvHeads, headSize, valueSize, scale, window: window(layer) };
    operations.attention(q, keys, values, batch.sequences, sizes, out);
  }

  dispose(): void {}
}
