import type { LatentAttention } from '../checkpoint/decoder-spec.ts';
import { awaitNative } from '../native.ts';
import type { Tensor } from '../tensor.ts';
import type { AttentionInput, AttentionKind, LayerContext, Projection } from './attention.ts';
import type { Batch } from './batch.ts';
import type { Operations } from './operations.ts';
import { rotaryMagnitude } from './rotary.ts';

export interface LatentAttentionWeights {
  /** Straight to the queries, or first to their latent vector, its norm and from there on. */
  readonly query: Projection | { readonly down: Projection; readonly norm: Tensor; readonly up: Projection };
  /** To the latent vector of keys and values, and behind it the rotated part that all heads of keys share. */
  readonly keyValueDown: Projection;
  readonly keyValueNorm: Tensor;
  /** From the latent vector to the plain part of each head's key, and behind it the head's value: [heads · (plain + value), latent]. */
  readonly keyValueUp: Tensor;
}

/**
 * Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434). Of a position, only the latent vector and the rotated part
 * of the keys are cached, its *entry*: [latent + rotated] numbers whatever the number of heads.
 *
 * Several tokens expand all entries so far to keys and values. A single token would spend nearly all its time on that;
 * instead its queries are taken to the latent space, where all heads attend to the entries themselves, and what they see
 * is taken from there to the values (section 2.1.2 of the paper): for head i, q_i · (U_i c) = (U_iᵀ q_i) · c.
 */
export class LatentHeads implements AttentionKind {
  readonly #weights: LatentAttentionWeights;
  readonly #spec: LatentAttention;
  #absorbed: AbsorbedProjections | undefined;

  constructor(weights: LatentAttentionWeights, spec: LatentAttention) {
    this.#weights = weights;
    this.#spec = spec;
  }

  attend(context: LayerContext, input: AttentionInput, out: Tensor): void {
    const { operations, scratch } = context;
    const { heads, headSize } = this.#spec;
    const { batch, cache, h } = input;
    const place = cache?.append(batch.tokens);
    const added = place?.added[0] ?? scratch.get('latentEntries', [batch.tokens, this.#entrySize]);
    const entries = place?.all[0] ?? added;
    const q = scratch.get('query', [batch.tokens, heads * headSize]);
    this.#projectQuery(context, h, q);
    this.#rotate(context, batch, q, heads, headSize, this.#spec.plainSize);
    this.#makeEntries(context, h, batch, added);
    if (cache && batch.tokens === 1) {
      this.#attendInLatentSpace(context, input, q, entries, out);
    } else {
      const { keys, values } = this.#expand(context, entries);
      const { valueSize } = this.#spec;
      const sizes = { heads, kvHeads: heads, headSize, valueSize, ...this.#shape(input.layer) };
      operations.attention(q, keys, values, batch.sequences, sizes, out);
    }
  }

  dispose(): void {
    this.#absorbed?.dispose();
    this.#absorbed = undefined;
  }

  get #rotatedSize(): number {
    return this.#spec.headSize - this.#spec.plainSize;
  }

  get #entrySize(): number {
    return this.#spec.kvLatentSize + this.#rotatedSize;
  }

  #shape(layer: number): { scale: number; window: number } {
    return { scale: this.#spec.scale, window: this.#spec.window(layer) };
  }

  #projectQuery({ operations, scratch }: LayerContext, h: Tensor, q: Tensor): void {
    const { query } = this.#weights;
    if ('weight' in query) {
      operations.linear(h, query.weight, query.bias, q);
      return;
    }
    const latent = scratch.get('queryLatent', [q.shape[0] as number, query.down.weight.shape[0] as number]);
    operations.linear(h, query.down.weight, query.down.bias, latent);
    operations.rmsNorm(latent, query.norm, this.#spec.latentNormEps, latent);
    operations.linear(latent, query.up.weight, query.up.bias, q);
  }

  #rotate(
    { operations, frequencies, spec }: LayerContext,
    batch: Batch,
    x: Tensor,
    heads: number,
    headSize: number,
    offset: number,
  ): void {
    const { neighbours } = spec.rotary;
    const rotation = { heads, headSize, offset, neighbours, magnitude: rotaryMagnitude(spec.rotary) };
    operations.rotary(x, batch.positions, frequencies, rotation);
  }

  /** entries [T, latent + rotated]: the latent vector, normalized, and the part of the keys that is rotated. */
  #makeEntries(context: LayerContext, h: Tensor, batch: Batch, entries: Tensor): void {
    const { operations, scratch } = context;
    const { keyValueDown, keyValueNorm } = this.#weights;
    const { kvLatentSize, latentNormEps } = this.#spec;
    const latent = scratch.get('keyValueLatent', [batch.tokens, kvLatentSize]);
    operations.linear(h, keyValueDown.weight, keyValueDown.bias, entries);
    operations.copyHeadColumns(entries, latent, columns(1, 1, 0, 0, kvLatentSize));
    operations.rmsNorm(latent, keyValueNorm, latentNormEps, latent);
    operations.copyHeadColumns(latent, entries, columns(1, 1, 0, 0, kvLatentSize));
    this.#rotate(context, batch, entries, 1, this.#entrySize, kvLatentSize);
  }

  /** Keys [S, heads · headSize] and values [S, heads · valueSize] of entries [S, latent + rotated]. */
  #expand({ operations, scratch }: LayerContext, entries: Tensor): { keys: Tensor; values: Tensor } {
    const { heads, headSize, valueSize, plainSize, kvLatentSize } = this.#spec;
    const count = entries.shape[0] as number;
    const latent = scratch.get('keyValueLatent', [count, kvLatentSize]);
    const expanded = scratch.get('keyValueUp', [count, heads * (plainSize + valueSize)]);
    const keys = scratch.get('key', [count, heads * headSize]);
    const values = scratch.get('value', [count, heads * valueSize]);
    operations.copyHeadColumns(entries, latent, columns(1, 1, 0, 0, kvLatentSize));
    operations.linear(latent, this.#weights.keyValueUp, undefined, expanded);
    operations.copyHeadColumns(expanded, keys, columns(heads, heads, 0, 0, plainSize));
    operations.copyHeadColumns(entries, keys, columns(heads, 1, kvLatentSize, plainSize, this.#rotatedSize));
    operations.copyHeadColumns(expanded, values, columns(heads, heads, plainSize, 0, valueSize));
    return { keys, values };
  }

  /** One token: out [1, heads · valueSize] of q [1, heads · headSize] over entries [S, latent + rotated]. */
  #attendInLatentSpace(
    context: LayerContext,
    { layer, batch }: AttentionInput,
    q: Tensor,
    entries: Tensor,
    out: Tensor,
  ): void {
    const { operations, scratch } = context;
    const { heads, headSize, valueSize, plainSize, kvLatentSize } = this.#spec;
    const size = this.#entrySize;
    const absorbed = this.#absorb(operations);
    const query = scratch.get('latentQuery', [1, heads * size]);
    // Values are the entries as well: of what a head sees of them, the rotated part is not used.
    const seen = scratch.get('latentSeen', [1, heads * size]);
    for (let head = 0; head < heads; head++) {
      using from = piece(q, head * headSize, plainSize);
      using to = piece(query, head * size, kvLatentSize);
      operations.linear(from, absorbed.queries[head] as Tensor, undefined, to);
    }
    operations.copyHeadColumns(q, query, columns(heads, heads, plainSize, kvLatentSize, this.#rotatedSize));
    const sizes = { heads, kvHeads: 1, headSize: size, valueSize: size, ...this.#shape(layer) };
    operations.attention(query, entries, entries, batch.sequences, sizes, seen);
    for (let head = 0; head < heads; head++) {
      using from = piece(seen, head * size, kvLatentSize);
      using to = piece(out, head * valueSize, valueSize);
      operations.linear(from, absorbed.values[head] as Tensor, undefined, to);
    }
  }

  /** Made when the first single token comes: evaluation never needs it. */
  #absorb(operations: Operations): AbsorbedProjections {
    this.#absorbed ??= new AbsorbedProjections(this.#weights.keyValueUp, this.#spec, operations);
    return this.#absorbed;
  }
}

/** The parts of the projection from the latent space, head by head, as matrices that take queries to it and values from it. */
class AbsorbedProjections {
  /** Uᵀ [latent, plain] of the keys of each head: copies. */
  readonly queries: readonly Tensor[];
  /** [valueSize, latent] of each head: views. */
  readonly values: readonly Tensor[];

  constructor(
    up: Tensor,
    { heads, plainSize, valueSize, kvLatentSize }: LatentAttention,
    operations: Operations,
  ) {
    const begin = (head: number) => head * (plainSize + valueSize);
    const each = Array.from({ length: heads }, (_, head) => head);
    this.queries = each.map((head) => {
      using keys = up.rows(begin(head), begin(head) + plainSize);
      const transposed = up.device.empty(up.dtype, [kvLatentSize, plainSize]);
      const [from, to] = [keys.native, transposed.native];
      operations.add(() => awaitNative(() => up.device.native.transpose(from, to)));
      return transposed;
    });
    this.values = each.map((head) => up.rows(begin(head) + plainSize, begin(head + 1)));
  }

  dispose(): void {
    for (const tensor of [...this.queries, ...this.values]) tensor.dispose();
  }
}

function columns(heads: number, fromHeads: number, fromOffset: number, toOffset: number, width: number) {
  return { heads, fromHeads, fromOffset, toOffset, width };
}

/** The view [1, width] of a single row's elements from `begin` on. */
function piece(row: Tensor, begin: number, width: number): Tensor {
  using flat = row.reshape([row.length]);
  using part = flat.rows(begin, begin + width);
  return part.reshape([1, width]);
}
