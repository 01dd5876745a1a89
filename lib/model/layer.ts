import { MolaeError } from '../errors.ts';
import type { Experts } from '../experts.ts';
import { MoeBlock } from '../moe-block.ts';
import type { Routing } from '../routing.ts';
import type { Tensor } from '../tensor.ts';
import type { AttentionBlock, LayerContext } from './attention.ts';
import type { Batch } from './batch.ts';
import type { LayerCache } from './cache.ts';

/** The weights of a decoder layer. */
export interface LayerWeights {
  readonly attentionNorm: Tensor;
  readonly attention: AttentionBlock;
  readonly feedForwardNorm: Tensor;
  /** A MoE layer, or the one expert of a dense layer. */
  readonly feedForward: MoeBlock | Experts;
  /** Tensors that go with the layer. */
  readonly owned: readonly Tensor[];
}

/** One decoder layer: attention and feed-forward, each with its norm before and its residual around it. */
export class DecoderLayer {
  readonly index: number;
  readonly weights: LayerWeights;
  /** Stands in for the MoE block of the weights; not disposed with the layer. */
  substitute: MoeBlock | undefined;

  constructor(index: number, weights: LayerWeights) {
    this.index = index;
    this.weights = weights;
  }

  get feedForward(): MoeBlock | Experts {
    return this.substitute ?? this.weights.feedForward;
  }

  get isMoe(): boolean {
    return this.feedForward instanceof MoeBlock;
  }

  /** x [T, n] += attention(norm(x)). With a cache, what it keeps of the tokens is appended, and all of it attended to. */
  attend(context: LayerContext, x: Tensor, batch: Batch, cache?: LayerCache): void {
    const { operations, scratch, spec } = context;
    const h = scratch.get('normed', x.shape);
    const out = scratch.get('attentionOutput', x.shape);
    operations.rmsNorm(x, this.weights.attentionNorm, spec.rmsNormEps, h);
    this.weights.attention.forward(context, { layer: this.index, h, batch, cache }, out);
    operations.accumulate(out, x);
  }

  /** out [T, n] = what the feed-forward part gets to see. */
  normalize({ operations, spec }: LayerContext, x: Tensor, out: Tensor): void {
    operations.rmsNorm(x, this.weights.feedForwardNorm, spec.rmsNormEps, out);
  }

  /**
   * The routing of normalized inputs h [T, n]; that of a dense layer sends every token to its one expert.
   *
   * @throws MolaeError `NON_FINITE` naming the layer: routers are where broken activations show first.
   */
  async route(h: Tensor): Promise<Routing> {
    const { feedForward } = this;
    if (feedForward instanceof MoeBlock) {
      try {
        return await feedForward.route(h);
      } catch (error) {
        if (!(error instanceof MolaeError) || error.code !== 'NON_FINITE') throw error;
        throw new MolaeError('NON_FINITE', `Layer ${this.index}: ${error.message}`, { cause: error });
      }
    }
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
    const { feedForward } = this;
    return feedForward instanceof MoeBlock ? feedForward.experts : feedForward;
  }

  /** The whole layer, on x [T, n] in place. */
  async forward(context: LayerContext, x: Tensor, batch: Batch, cache?: LayerCache): Promise<void> {
    this.attend(context, x, batch, cache);
    const h = context.scratch.get('feedForwardInput', x.shape);
    this.normalize(context, x, h);
    const routing = await this.route(h);
    using _ids = routing.ids;
    using _weights = routing.weights;
    this.applyExperts(context, h, routing, x);
    await context.operations.settle();
  }

  dispose(): void {
    this.weights.attention.dispose();
    this.weights.feedForward.dispose();
    for (const tensor of this.weights.owned) tensor.dispose();
  }
}
