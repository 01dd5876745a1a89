import type { DecoderSpec } from '../checkpoint/decoder-spec.ts';
import type { Tensor } from '../tensor.ts';
import type { Batch } from './batch.ts';
import type { LayerCache } from './cache.ts';
import type { Operations } from './operations.ts';
import type { Scratch } from './scratch.ts';

/** What layers need to compute: shared by all layers of a model. */
export interface LayerContext {
  readonly spec: DecoderSpec;
  readonly frequencies: Tensor<'f32'>;
  readonly operations: Operations;
  readonly scratch: Scratch;
}

/** A matrix [out, in] and perhaps a bias [out]. */
export interface Projection {
  readonly weight: Tensor;
  readonly bias: Tensor | undefined;
}

/** Where queries, keys and values of some tokens go: [T, heads · headSize], [T, kvHeads · headSize], [T, kvHeads · valueSize]. */
export interface QueryKeyValue {
  readonly q: Tensor;
  readonly k: Tensor;
  readonly v: Tensor;
}

/** How a kind of attention makes queries, keys and values, rotated, of normalized inputs. */
export interface QueryKeyValueProjection {
  project(context: LayerContext, h: Tensor, batch: Batch, into: QueryKeyValue): void;
}

/** Attention of a decoder layer, of any kind: projections, attention over all keys so far, output projection. */
export class AttentionBlock {
  readonly #projection: QueryKeyValueProjection;
  readonly #output: Projection;

  constructor(projection: QueryKeyValueProjection, output: Projection) {
    this.#projection = projection;
    this.#output = output;
  }

  /** out [T, n] = attention of h [T, n]. With a cache, keys and values are appended to it and all of it is attended to. */
  forward(
    context: LayerContext,
    layer: number,
    h: Tensor,
    batch: Batch,
    cache: LayerCache | undefined,
    out: Tensor,
  ): void {
    const { operations, scratch, spec } = context;
    const { heads, kvHeads, headSize, valueSize, scale, window } = spec.attention;
    const place = cache?.append(batch.tokens);
    const q = scratch.get('query', [batch.tokens, heads * headSize]);
    const k = place?.newKeys ?? scratch.get('key', [batch.tokens, kvHeads * headSize]);
    const v = place?.newValues ?? scratch.get('value', [batch.tokens, kvHeads * valueSize]);
    this.#projection.project(context, h, batch, { q, k, v });
    const attended = scratch.get('attended', [batch.tokens, heads * valueSize]);
    const sizes = { heads, kvHeads, headSize, valueSize, scale, window: window(layer) };
    operations.attention(q, place?.keys ?? k, place?.values ?? v, batch.sequences, sizes, attended);
    operations.linear(attended, this.#output.weight, this.#output.bias, out);
  }
}
