import type { DecoderSpec } from '../checkpoint/decoder-spec.ts';
import type { Experts } from '../experts.ts';
import { MoeBlock } from '../moe-block.ts';
import type { Routing } from '../routing.ts';
import type { Tensor } from '../tensor.ts';
import type { Batch } from './batch.ts';
import type { LayerCache } from './cache.ts';
import type { Operations } from './operations.ts';
import { rotaryMagnitude } from './rotary.ts';
import type { Scratch } from './scratch.ts';

/** A matrix [out, in] and perhaps a bias [out]. */
export interface Projection {
  readonly weight: Tensor;
  readonly bias: Tensor | undefined;
}

/** The weights of a decoder layer. */
export interface LayerWeights {
  readonly attentionNorm: Tensor;
  readonly query: Projection;
  readonly key: Projection;
  readonly value: Projection;
  readonly output: Projection;
  readonly queryNorm: Tensor | undefined;
  readonly keyNorm: Tensor | undefined;
  readonly feedForwardNorm: Tensor;
  /** A MoE layer, or the one expert of a dense layer. */
  readonly feedForward: MoeBlock | Experts;
  /** Tensors that go with the layer. */
  readonly owned: readonly Tensor[];
}

/** What layers need to compute: shared by all layers of a model. */
export interface LayerContext {
  readonly spec: DecoderSpec;
  readonly frequencies: Tensor<'f32'>;
  readonly operations: Operations;
  readonly scratch: Scratch;
}

/** One decoder layer: attention and feed-forward, each with its norm before and its residual around it. */
export class DecoderLayer {
  readonly index: number;
  readonly weights: LayerWeights;

  constructor(index: number, weights: LayerWeights) {
    this.index = index;
    this.weights = weights;
  }

  get isMoe(): boolean {
    return this.weights.feedForward instanceof MoeBlock;
  }

  /** x [T, n] += attention(norm(x)). With a cache, its keys and values are appended and attended to as well. */
  attend(context: LayerContext, x: Tensor, batch: Batch, cache?: LayerCache): void {
    const { operations, scratch, spec, frequencies } = context;
    const { heads, kvHeads, headSize, window } = spec.attention;
    const { weights } = this;
    const h = scratch.get('normed', x.shape);
    const q = scratch.get('query', [batch.tokens, heads * headSize]);
    const kvShape = [batch.tokens, kvHeads * headSize];
    const place = cache?.append(batch.tokens);
    const k = place?.newKeys ?? scratch.get('key', kvShape);
    const v = place?.newValues ?? scratch.get('value', kvShape);
    operations.rmsNorm(x, weights.attentionNorm, spec.rmsNormEps, h);
    operations.linear(h, weights.query.weight, weights.query.bias, q);
    operations.linear(h, weights.key.weight, weights.key.bias, k);
    operations.linear(h, weights.value.weight, weights.value.bias, v);
    if (weights.queryNorm) operations.rmsNorm(q, weights.queryNorm, spec.rmsNormEps, q);
    if (weights.keyNorm) operations.rmsNorm(k, weights.keyNorm, spec.rmsNormEps, k);
    const rotary = { headSize, offset: 0, neighbours: false, magnitude: rotaryMagnitude(spec.rotary) };
    operations.rotary(q, batch.positions, frequencies, { ...rotary, heads });
    operations.rotary(k, batch.positions, frequencies, { ...rotary, heads: kvHeads });
    const attended = scratch.get('attended', q.shape);
    operations.attention(
      q,
      place?.keys ?? k,
      place?.values ?? v,
      batch.sequences,
      {
        heads,
        kvHeads,
        headSize,
        valueSize: headSize,
        scale: 1 / Math.sqrt(headSize),
        window: window(this.index),
      },
      attended,
    );
    operations.linear(attended, weights.output.weight, weights.output.bias, h);
    operations.accumulate(h, x);
  }

  /** out [T, n] = what the feed-forward part gets to see. */
  normalize({ operations, spec }: LayerContext, x: Tensor, out: Tensor): void {
    operations.rmsNorm(x, this.weights.feedForwardNorm, spec.rmsNormEps, out);
  }

  /** The routing of normalized inputs h [T, n]; that of a dense layer sends every token to its one expert. */
  async route(h: Tensor): Promise<Routing> {
    const { feedForward } = this.weights;
    if (feedForward instanceof MoeBlock) return feedForward.route(h);
    const tokens = h.shape[0] as number;
    return {
      ids: h.device.tensor('i32', new Int32Array(tokens), [tokens, 1]),
      weights: h.device.tensor('f32', new Float32Array(tokens).fill(1), [tokens, 1]),
    };
  }

  /** x [T, n] += experts(h) */
  applyExperts(
    context: LayerContext,
    h: Tensor,
    routing: Routing,
    x: Tensor,
    experts: Experts = this.experts,
  ): void {
    const { operations, scratch } = context;
    const out = scratch.get('experts', x.shape);
    operations.add(() => experts.forward(h, routing, { out }));
    operations.accumulate(out, x);
  }

  get experts(): Experts {
    const { feedForward } = this.weights;
    return feedForward instanceof MoeBlock ? feedForward.experts : feedForward;
  }

  /** The whole layer, on x [T, n] in place. */
  async forward(context: LayerContext, x: Tensor, batch: Batch, cache?: LayerCache): Promise<void> {
    this.attend(context, x, batch, cache);
    const h = context.scratch.get('feedForwardInput', x.shape);
    this.normalize(context, x, h);
    const routing = await this.route(h);
    this.applyExperts(context, h, routing, x);
    await context.operations.settle();
    routing.ids.dispose();
    routing.weights.dispose();
  }

  dispose(): void {
    this.weights.feedForward.dispose();
    for (const tensor of this.weights.owned) tensor.dispose();
  }
}
