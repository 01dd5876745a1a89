import { type DType, isBlockDType } from './dtype.ts';
import { checkObject, expected, MolaeError, shapeText } from './errors.ts';
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

  /** @throws MolaeError `SHAPE_MISMATCH`, `DTYPE_MISMATCH` for a router or bias that does not fit the experts. */
  constructor(init: MoeBlockInit) {
    checkObject(init, 'init');
    const { router, spec, correctionBias, experts } = init;
    checkTensor(router, 'router');
    checkObject(spec, 'spec');
    if (correctionBias !== undefined) checkTensor(correctionBias, 'correctionBias');
    if (!Experts.is(experts)) throw expected('DenseExperts or LatentExperts', 'experts', experts);
    const { numExperts, hiddenSize } = experts;
    checkPart(router, [numExperts, hiddenSize], 'router');
    if (correctionBias !== undefined) checkPart(correctionBias, [numExperts], 'correctionBias');
    this.router = router;
    this.spec = spec;
    this.correctionBias = correctionBias;
    this.experts = experts;
  }

  /** The router's logits [tokens, N] in f32 for x [tokens, n]. */
  async routerLogits(x: Tensor): Promise<Tensor<'f32'>> {
    checkInputs(x, this.experts.hiddenSize);
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

/** Throws unless a tensor that routes is in f32, and fits the experts. */
function checkPart({ dtype, shape }: Tensor, wanted: readonly number[], name: string): void {
  if (shapeText(shape) !== shapeText(wanted)) {
    throw new MolaeError(
      'SHAPE_MISMATCH',
      `Expected shape ${shapeText(wanted)} for ${name} but received ${shapeText(shape)}`,
    );
  }
  if (dtype !== 'f32') {
    throw new MolaeError('DTYPE_MISMATCH', `Expected f32 for ${name} but received ${dtype}`);
  }
}

/** Before the router is multiplied with them: it would speak of its operands. */
function checkInputs(x: unknown, hiddenSize: number): asserts x is Tensor {
  checkTensor(x, 'x');
  const { dtype, shape } = x;
  if (shape.length !== 2 || shape[1] !== hiddenSize) {
    throw new MolaeError(
      'SHAPE_MISMATCH',
      `Expected shape [tokens, ${hiddenSize}] for x but received ${shapeText(shape)}`,
    );
  }
  if (dtype === 'i32' || isBlockDType(dtype)) {
    throw new MolaeError('DTYPE_MISMATCH', `Expected a floating dtype for x but received ${dtype}`);
  }
}
