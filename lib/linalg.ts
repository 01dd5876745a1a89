import { type DType, isBlockDType } from './dtype.ts';
import { checkObject, expected, MolaeError, shapeText } from './errors.ts';
import { awaitNative, type NativeGemm, type NativeTensor } from './native.ts';
import { checkTensor, type ResultTensor, type Tensor, withResults } from './tensor.ts';

/** Of one call. */
const MOST_PRODUCTS = 2 ** 20;

/** C = alpha · op(A) · op(B) + beta · C */
export interface GemmOptions<Out extends Tensor | undefined = Tensor | undefined> {
  readonly transposeA?: boolean | undefined;
  readonly transposeB?: boolean | undefined;
  readonly alpha?: number | undefined;
  /** Only with `out`; 0 (the default) does not read it. */
  readonly beta?: number | undefined;
  /** Where C goes; by default a new tensor of A's dtype. May be f32 for f16 and bf16 operands. */
  readonly out?: Out;
}

/**
 * The matrix product op(A) [m, k] · op(B) [k, n] → [m, n]. f32 and f64 are computed as they are; f16 and bf16 operands
 * are multiplied and summed in f32 and rounded once.
 */
export async function gemm<D extends DType, Out extends Tensor | undefined = undefined>(
  a: Tensor<D>,
  b: Tensor,
  options: GemmOptions<Out> = {},
): Promise<ResultTensor<D, Out>> {
  checkMatrix(a, 'a');
  checkMatrix(b, 'b');
  const given = checkedOptions(options);
  return withResults(a.device, async (make) => {
    const out = given.out ?? make(a.dtype, [opRows(a, given.transposeA), opCols(b, given.transposeB)]);
    await awaitNative(() => a.device.native.gemm(...problem(a, b, out, given)));
    return out as ResultTensor<D, Out>;
  });
}

/** Products of matching slices: A [batch, …] · B [batch, …] → [batch, m, n]. */
export async function batchedGemm<D extends DType, Out extends Tensor | undefined = undefined>(
  a: Tensor<D>,
  b: Tensor,
  options: GemmOptions<Out> = {},
): Promise<ResultTensor<D, Out>> {
  checkRank(a, 3, 'a');
  checkRank(b, 3, 'b');
  const given = checkedOptions(options);
  const batch = a.shape[0] as number;
  if (batch > MOST_PRODUCTS) throw expected(`at most ${MOST_PRODUCTS} slices`, 'a', batch);
  const m = a.shape[given.transposeA ? 2 : 1] as number;
  const n = b.shape[given.transposeB ? 1 : 2] as number;
  return withResults(a.device, async (make) => {
    const out = given.out ?? make(a.dtype, [batch, m, n]);
    await awaitNative(() => a.device.native.batchedGemm(...problem(a, b, out, given)));
    return out as ResultTensor<D, Out>;
  });
}

/** One product of a group. */
export interface GroupedGemmProblem extends GemmOptions {
  readonly a: Tensor;
  readonly b: Tensor;
}

/** The results of products, in their order. */
export type GroupedGemmResults<Problems extends readonly GroupedGemmProblem[]> = {
  -readonly [I in keyof Problems]: ResultTensor<Problems[I]['a']['dtype'], Problems[I]['out']>;
};

/** Independent products of any shapes, as one operation: the threads are shared out over all of them. */
export async function groupedGemm<const Problems extends readonly GroupedGemmProblem[]>(
  problems: Problems,
): Promise<GroupedGemmResults<Problems>> {
  if (!Array.isArray(problems)) throw expected('an array', 'problems', problems);
  if (problems.length > MOST_PRODUCTS)
    throw expected(`at most ${MOST_PRODUCTS} products`, 'problems', problems);
  const given = Array.from(problems, (item: GroupedGemmProblem, i) => {
    checkObject(item, `problems[${i}]`);
    const { a, b } = item;
    checkMatrix(a, `problems[${i}].a`);
    checkMatrix(b, `problems[${i}].b`);
    return { a, b, ...checkedOptions(item) };
  });
  const [first] = given;
  if (!first) return [] as GroupedGemmResults<Problems>;
  const { device } = first.a;
  return withResults(device, async (make) => {
    const outs: Tensor[] = given.map(
      ({ a, b, transposeA, transposeB, out }) =>
        out ?? make(a.dtype, [opRows(a, transposeA), opCols(b, transposeB)]),
    );
    const tensors: NativeTensor[] = [];
    const settings = new Float64Array(4 * given.length);
    for (const [i, { a, b, transposeA, transposeB, alpha, beta }] of given.entries()) {
      tensors.push(a.native, b.native, (outs[i] as Tensor).native);
      settings.set([+transposeA, +transposeB, alpha, beta], 4 * i);
    }
    await awaitNative(() => device.native.groupedGemm(tensors, settings));
    return outs as GroupedGemmResults<Problems>;
  });
}

/** A singular value decomposition A = U · diag(s) · Vᵀ of a matrix [p, q]. The caller disposes the tensors. */
export interface Svd<D extends DType = DType> {
  /** Left singular vectors [p, k] as columns, k = min(p, q). */
  readonly u: Tensor<D>;
  /** Singular values [k], descending. */
  readonly s: Tensor<D>;
  /** Right singular vectors [k, q] as rows. */
  readonly vt: Tensor<D>;
}

/**
 * A = U · diag(s) · Vᵀ of a matrix [p, q] in f32 or f64, by LAPACK's divide and conquer (gesdd).
 *
 * @throws MolaeError `NON_FINITE` with the position, `NO_CONVERGENCE`.
 */
export async function svd<D extends DType>(a: Tensor<D>): Promise<Svd<D>> {
  checkMatrix(a, 'a');
  refuseBlocks(a, 'a');
  const [p, q] = a.shape as [number, number];
  const k = Math.min(p, q);
  return withResults(a.device, async (make) => {
    const result: Svd<D> = { u: make(a.dtype, [p, k]), s: make(a.dtype, [k]), vt: make(a.dtype, [k, q]) };
    const { u, s, vt } = result;
    await awaitNative(() => a.device.native.svd(a.native, u.native, s.native, vt.native));
    return result;
  });
}

/** Eigenvalues and eigenvectors of a symmetric matrix [n, n]. The caller disposes the tensors. */
export interface Eigh<D extends DType = DType> {
  /** All eigenvalues [n], descending. */
  readonly values: Tensor<D>;
  /** Unit eigenvectors [top, n] as rows, those of the `top` largest eigenvalues, in their order. */
  readonly vectors: Tensor<D>;
}

/**
 * Eigenvalues, and the eigenvectors of the `top` largest of them, of a symmetric matrix [n, n] in f32 or f64. Only the
 * lower triangle is read.
 *
 * @param options.top by default n: the whole decomposition.
 */
export async function eigh<D extends DType>(
  a: Tensor<D>,
  options: { readonly top?: number | undefined } = {},
): Promise<Eigh<D>> {
  checkMatrix(a, 'a');
  refuseBlocks(a, 'a');
  checkObject(options, 'options');
  const [n] = a.shape as [number, number];
  const { top = n } = options;
  if (!Number.isSafeInteger(top) || top < 0 || top > n)
    throw expected(`an integer from 0 to ${n}`, 'top', top);
  const work = await a.to(a.dtype);
  try {
    return await withResults(a.device, async (make) => {
      const result: Eigh<D> = { values: make(a.dtype, [n]), vectors: make(a.dtype, [top, n]) };
      await awaitNative(() => a.device.native.eigh(work.native, result.values.native, result.vectors.native));
      return result;
    });
  } finally {
    work.dispose();
  }
}

/** The transpose [q, p] of a matrix [p, q], as a new tensor. */
export async function transpose<D extends DType>(a: Tensor<D>): Promise<Tensor<D>> {
  checkMatrix(a, 'a');
  const { device, dtype, shape } = a;
  return withResults(device, async (make) => {
    const out = make(dtype, [...shape].reverse());
    await awaitNative(() => device.native.transpose(a.native, out.native));
    return out;
  });
}

interface CheckedOptions {
  readonly transposeA: boolean;
  readonly transposeB: boolean;
  readonly alpha: number;
  readonly beta: number;
  readonly out: Tensor | undefined;
}

function checkedOptions(options: GemmOptions): CheckedOptions {
  checkObject(options, 'options');
  const { transposeA = false, transposeB = false, alpha = 1, beta = 0, out } = options;
  if (typeof transposeA !== 'boolean') throw expected('a boolean', 'transposeA', transposeA);
  if (typeof transposeB !== 'boolean') throw expected('a boolean', 'transposeB', transposeB);
  if (typeof alpha !== 'number') throw expected('a number', 'alpha', alpha);
  if (typeof beta !== 'number') throw expected('a number', 'beta', beta);
  if (out !== undefined) checkTensor(out, 'out');
  else if (beta !== 0) throw new MolaeError('INVALID_ARGUMENT', 'beta needs out: there is nothing to add to');
  return { transposeA, transposeB, alpha, beta, out };
}

function problem(a: Tensor, b: Tensor, out: Tensor, options: CheckedOptions): NativeGemm {
  const { transposeA, transposeB, alpha, beta } = options;
  return [a.native, b.native, out.native, transposeA, transposeB, alpha, beta];
}

function opRows(a: Tensor, transpose: boolean): number {
  return a.shape[transpose ? 1 : 0] as number;
}

function opCols(b: Tensor, transpose: boolean): number {
  return b.shape[transpose ? 0 : 1] as number;
}

function checkMatrix(value: unknown, name: string): asserts value is Tensor {
  checkRank(value, 2, name);
}

function checkRank(value: unknown, rank: number, name: string): asserts value is Tensor {
  checkTensor(value, name);
  if (value.shape.length !== rank) {
    throw new MolaeError(
      'SHAPE_MISMATCH',
      `Expected ${rank} dimensions for ${name} but received shape ${shapeText(value.shape)}`,
    );
  }
}

/** Of what makes results in the dtype of an operand before the device looks at it. */
function refuseBlocks({ dtype }: Tensor, name: string): void {
  if (!isBlockDType(dtype)) return;
  throw new MolaeError('DTYPE_MISMATCH', `Expected a floating dtype for ${name} but received ${dtype}`);
}
