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

/** What tokens of a layer see. */
export interface AttentionInput {
  /** The layer's index. */
  readonly layer: number;
  /** Normalized inputs [T, n]. */
  readonly h: Tensor;
  readonly batch: Batch;
  /** What is appended to, and then attended to as a whole. */
  readonly cache: LayerCache | undefined;
}

/** A kind of attention: how queries, keys and values are made, what of them is cached, and how they meet. */
export interface AttentionKind {
  /** out [T, heads · valueSize] = what each head of each token of `input` sees, before the output projection. */
  attend(context: LayerContext, input: AttentionInput, out: Tensor): void;
  dispose(): void;
}

/** Attention of a decoder layer, of any kind, with its output projection. */
export class AttentionBlock {
  readonly #kind: AttentionKind;
  readonly #output: Projection;

  constructor(kind: AttentionKind, output: Projection) {
    this.#kind = kind;
    this.#output = output;
  }

  /** out [T, n] = attention of the input. */
  forward(context: LayerContext, input: AttentionInput, out: Tensor): void {
    const { operations, scratch, spec } = context;
    const { heads, valueSize } = spec.attention;
    const attended = scratch.get('attended', [input.batch.tokens, heads * valueSize]);
    this.#kind.attend(context, input, attended);
    operations.linear(attended, this.#output.weight, this.#output.bias, out);
  }

  dispose(): void {
    this.#kind.dispose();
  }
}
