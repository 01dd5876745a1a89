import type { DType } from './dtype.ts';
import { checkObject, expected } from './errors.ts';
import { Experts, type ForwardOptions } from './experts.ts';
import { gemm } from './linalg.ts';
import { type RouterSpec, type Routing, route } from './routing.ts';
import { checkTensor, type ResultTensor, type Tensor } from './tensor.ts';

/** What a MoE layer is made of. The tensors and experts are taken over: `MoeBlock.dispose` disposes them. */
export interface MoeBlockInit {
  /** The router's weight [N, n]. */
  readonly router: Tensor<'f32'>;
  readonly spec: RouterSpec;
  /** [N], added to the scores where experts are chosen; see {@link RouteOptions}. */
  readonly correctionBias?: Tensor<'f32'> | undefined;
  readonly experts: Experts;
}

/** A whole MoE layer: the router decides, the experts compute. */
export class MoeBlock {
  readonly router: Tensor<'f32'>;
  readonly spec: RouterSpec;
  readonly correctionBias: Tensor<'f32'> | undefined;
  readonly experts: Experts;

  constructor(init: MoeBlockInit) {
    checkObject(init, 'init');
    const { router, spec, correctionBias, experts } = init;
    checkTensor(router, 'router');
    checkObject(spec, 'spec');
    if (correctionBias !== undefined) checkTensor(correctionBias, 'correctionBias');
    if (!Experts.is(experts)) throw expected('DenseExperts or LatentExperts', 'experts', experts);
    this.router = router;
    this.spec = spec;
    this.correctionBias = correctionBias;
    this.experts = experts;
  }

  /** The router's logits [tokens, N] in f32 for x [tokens, n]. */
  async routerLogits(x: Tensor): Promise<Tensor<'f32'>> {
    checkTensor(x, 'x');
    const wide = x.dtype === 'f32' ? (x as Tensor<'f32'>) : await x.to('f32');
    try {
      return await gemm(wide, this.router, { transposeB: true });
    } finally {
      if (wide !== x) wide.dispose();
    }
  }

  /** Which experts each token of x [tokens, n] goes to. */
  async route(x: Tensor): Promise<Routing> {
    using logits = await this.routerLogits(x);
    return await route(logits, this.spec, { correctionBias: this.correctionBias });
  }

  /** y [tokens, n] of x [tokens, n], in x's dtype. */
  async forward<D extends DType, Out extends Tensor | undefined = undefined>(
    x: Tensor<D>,
    options: ForwardOptions<Out> = {},
  ): Promise<ResultTensor<D, Out>> {
    const routing = await this.route(x);
    try {
      return await this.experts.forward(x, routing, options);
    } finally {
      routing.ids.dispose();
      routing.weights.dispose();
    }
  }

  /** Disposes router and experts. */
  dispose(): void {
    this.router.dispose();
    this.correctionBias?.dispose();
    this.experts.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
