import type { DType } from './dtype.ts';
import { expected, MolaeError } from './errors.ts';
import { awaitNative, type NativeGemm } from './native.ts';
import { checkTensor, type Shape, type Tensor } from './tensor.ts';

/** C = alpha · op(A) · op(B) + beta · C */
export interface GemmOptions {
  readonly transposeA?: boolean;
  readonly transposeB?: boolean;
  readonly alpha?: number;
  /** Only with `out`; 0 (the default) does not read it. */
  readonly beta?: number;
  /** Where C goes; by default a new tensor of A's dtype. May be f32 for f16 and bf16 operands. */
  readonly out?: Tensor;
}

/**
 * The matrix product op(A) [m, k] · op(B) [k, n] → [m, n]. f32 and f64 are computed as they are; f16 and bf16 operands
 * are multiplied and summed in f32 and rounded once.
 */
export async function gemm(a: Tensor, b: Tensor, options: GemmOptions = {}): Promise<Tensor> {
  checkMatrix(a, 'a');
  checkMatrix(b, 'b');
  const out =
    options.out ?? a.device.empty(a.dtype, [opRows(a, options.transposeA), opCols(b, options.transposeB)]);
  await awaitNative(() => a.device.native.gemm([problem(a, b, out, options)]));
  return out;
}

/** Products of matching slices: A [batch, …] · B [batch, …] → [batch, m, n]. */
export async function batchedGemm(a: Tensor, b: Tensor, options: GemmOptions = {}): Promise<Tensor> {
  checkRank(a, 3, 'a');
  checkRank(b, 3, 'b');
  const batch = a.shape[0] as number;
  if (b.shape[0] !== batch) {
    throw new MolaeError(
      'SHAPE_MISMATCH',
      `Batches differ: a [${a.shape.join(', ')}], b [${b.shape.join(', ')}]`,
    );
  }
  const m = a.shape[options.transposeA ? 2 : 1] as number;
  const n = b.shape[options.transposeB ? 1 : 2] as number;
  const out = options.out ?? a.device.empty(a.dtype, [batch, m, n]);
  checkRank(out, 3, 'out');
  if (out.shape[0] !== batch) {
    throw new MolaeError(
      'SHAPE_MISMATCH',
      `Expected shape [${batch}, ${m}, ${n}] for out but received [${out.shape.join(', ')}]`,
    );
  }
  const slices = Array.from({ length: batch }, (_, i) => [a.slice(i), b.slice(i), out.slice(i)] as const);
  try {
    await awaitNative(() => a.device.native.gemm(slices.map(([x, y, z]) => problem(x, y, z, options))));
  } finally {
    for (const slice of slices.flat()) slice.dispose();
  }
  return out;
}

/** One product of a group. */
export interface GroupedGemmProblem extends GemmOptions {
  readonly a: Tensor;
  readonly b: Tensor;
}

/** Independent products of any shapes, as one operation: the threads are shared out over all of them. */
export async function groupedGemm(problems: readonly GroupedGemmProblem[]): Promise<Tensor[]> {
  if (!Array.isArray(problems)) throw expected('an array', 'problems', problems);
  const [first] = problems;
  if (!first) return [];
  const outs = problems.map(({ a, b, ...options }, i) => {
    checkMatrix(a, `problems[${i}].a`);
    checkMatrix(b, `problems[${i}].b`);
    return (
      options.out ?? a.device.empty(a.dtype, [opRows(a, options.transposeA), opCols(b, options.transposeB)])
    );
  });
  await awaitNative(() =>
    first.a.device.native.gemm(
      problems.map(({ a, b, ...options }, i) => problem(a, b, outs[i] as Tensor, options)),
    ),
  );
  return outs;
}

export interface Svd {
  /** Left singular vectors [p, k] as columns, k = min(p, q). */
  readonly u: Tensor;
  /** Singular values [k], descending. */
  readonly s: Tensor;
  /** Right singular vectors [k, q] as rows. */
  readonly vt: Tensor;
}

/**
 * A = U · diag(s) · Vᵀ of a matrix [p, q] in f32 or f64, by LAPACK's divide and conquer (gesdd).
 *
 * @throws MolaeError `NON_FINITE` with the position, `NO_CONVERGENCE`.
 */
export async function svd(a: Tensor): Promise<Svd> {
  checkMatrix(a, 'a');
  const [p, q] = a.shape as [number, number];
  const k = Math.min(p, q);
  const result: Svd = {
    u: a.device.empty(a.dtype, [p, k]),
    s: a.device.empty(a.dtype, [k]),
    vt: a.device.empty(a.dtype, [k, q]),
  };
  await awaitNative(() => a.device.native.svd(a.native, result.u.native, result.s.native, result.vt.native));
  return result;
}

export interface Eigh {
  /** All eigenvalues [n], descending. */
  readonly values: Tensor;
  /** Unit eigenvectors [top, n] as rows, those of the `top` largest eigenvalues, in their order. */
  readonly vectors: Tensor;
}

/**
 * Eigenvalues, and the eigenvectors of the `top` largest of them, of a symmetric matrix [n, n] in f32 or f64. Only the
 * lower triangle is read.
 *
 * @param options.top by default n: the whole decomposition.
 */
export async function eigh(a: Tensor, options: { readonly top?: number } = {}): Promise<Eigh> {
  checkMatrix(a, 'a');
  const [n] = a.shape as [number, number];
  const { top = n } = options;
  if (!Number.isSafeInteger(top) || top < 0 || top > n)
    throw expected(`an integer from 0 to ${n}`, 'top', top);
  const work = await a.to(a.dtype);
  const result: Eigh = { values: a.device.empty(a.dtype, [n]), vectors: a.device.empty(a.dtype, [top, n]) };
  try {
    await awaitNative(() => a.device.native.eigh(work.native, result.values.native, result.vectors.native));
  } finally {
    work.dispose();
  }
  return result;
}

/** The transpose [q, p] of a matrix [p, q], as a new tensor. */
export async function transpose<D extends DType>(a: Tensor<D>): Promise<Tensor<D>> {
  checkMatrix(a, 'a');
  const out = a.device.empty(a.dtype, [...a.shape].reverse() as Shape);
  await awaitNative(() => a.device.native.transpose(a.native, out.native));
  return out;
}

function problem(a: Tensor, b: Tensor, out: Tensor, options: GemmOptions): NativeGemm {
  const { transposeA = false, transposeB = false, alpha = 1, beta = 0 } = options;
  if (typeof alpha !== 'number') throw expected('a number', 'alpha', alpha);
  if (typeof beta !== 'number') throw expected('a number', 'beta', beta);
  if (beta !== 0 && options.out === undefined) {
    throw new MolaeError('INVALID_ARGUMENT', 'beta needs out: there is nothing to add to');
  }
  return [a.native, b.native, out.native, transposeA, transposeB, alpha, beta];
}

function opRows(a: Tensor, transpose: boolean | undefined): number {
  return a.shape[transpose ? 1 : 0] as number;
}

function opCols(b: Tensor, transpose: boolean | undefined): number {
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
      `Expected ${rank} dimensions for ${name} but received shape [${value.shape.join(', ')}]`,
    );
  }
}
