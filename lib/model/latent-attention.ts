import type { LatentAttention } from '../checkpoint/decoder-spec.ts';
import type { Tensor } from '../tensor.ts';
import type { LayerContext, Projection, QueryKeyValue, QueryKeyValueProjection } from './attention.ts';
import type { Batch } from './batch.ts';
import { rotaryMagnitude } from './rotary.ts';

export interface LatentAttentionWeights {
  /** Straight to the queries, or first to their latent vector, its norm and from there on. */
  readonly query: Projection | { readonly down: Projection; readonly norm: Tensor; readonly up: Projection };
  /** To the latent vector of keys and values, and behind it the rotated part that all heads of keys share. */
  readonly keyValueDown: Projection;
  readonly keyValueNorm: Tensor;
  /** From the latent vector to the plain part of each head's key, and behind it the head's value. */
  readonly keyValueUp: Projection;
}

/**
 * Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434). Keys and values are expanded before they are cached: the
 * arithmetic is that of the paper, the cache is not as small as it could be.
 */
export class LatentProjection implements QueryKeyValueProjection {
  readonly #weights: LatentAttentionWeights;
  readonly #spec: LatentAttention;

  constructor(weights: LatentAttentionWeights, spec: LatentAttention) {
    this.#weights = weights;
    this.#spec = spec;
  }

  project(context: LayerContext, h: Tensor, batch: Batch, { q, k, v }: QueryKeyValue): void {
    const { operations, scratch, frequencies, spec } = context;
    const { heads, headSize, valueSize, plainSize, kvLatentSize } = this.#spec;
    const rotatedSize = headSize - plainSize;
    const magnitude = rotaryMagnitude(spec.rotary);
    const { neighbours } = spec.rotary;
    const tokens = batch.tokens;

    this.#projectQuery(context, h, q);
    operations.rotary(q, batch.positions, frequencies, {
      heads,
      headSize,
      offset: plainSize,
      neighbours,
      magnitude,
    });

    const { keyValueDown, keyValueNorm, keyValueUp } = this.#weights;
    const down = scratch.get('keyValueDown', [tokens, kvLatentSize + rotatedSize]);
    const latent = scratch.get('keyValueLatent', [tokens, kvLatentSize]);
    const expanded = scratch.get('keyValueUp', [tokens, heads * (plainSize + valueSize)]);
    operations.linear(h, keyValueDown.weight, keyValueDown.bias, down);
    operations.copyHeadColumns(down, latent, {
      heads: 1,
      fromHeads: 1,
      fromOffset: 0,
      toOffset: 0,
      width: kvLatentSize,
    });
    operations.rmsNorm(latent, keyValueNorm, spec.rmsNormEps, latent);
    operations.linear(latent, keyValueUp.weight, keyValueUp.bias, expanded);
    const rotation = {
      heads: 1,
      headSize: kvLatentSize + rotatedSize,
      offset: kvLatentSize,
      neighbours,
      magnitude,
    };
    operations.rotary(down, batch.positions, frequencies, rotation);
    operations.copyHeadColumns(expanded, k, {
      heads,
      fromHeads: heads,
      fromOffset: 0,
      toOffset: 0,
      width: plainSize,
    });
    operations.copyHeadColumns(down, k, {
      heads,
      fromHeads: 1,
      fromOffset: kvLatentSize,
      toOffset: plainSize,
      width: rotatedSize,
    });
    operations.copyHeadColumns(expanded, v, {
      heads,
      fromHeads: heads,
      fromOffset: plainSize,
      toOffset: 0,
      width: valueSize,
    });
  }

  #projectQuery({ operations, scratch, spec }: LayerContext, h: Tensor, q: Tensor): void {
    const { query } = this.#weights;
    if ('weight' in query) {
      operations.linear(h, query.weight, query.bias, q);
      return;
    }
    const latent = scratch.get('queryLatent', [q.shape[0] as number, query.down.weight.shape[0] as number]);
    operations.linear(h, query.down.weight, query.down.bias, latent);
    operations.rmsNorm(latent, query.norm, spec.rmsNormEps, latent);
    operations.linear(latent, query.up.weight, query.up.bias, q);
  }
}
