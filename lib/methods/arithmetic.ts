import { gemm, groupedGemm } from '../linalg.ts';
import type { Tensor } from '../tensor.ts';

/** A tensor and what it is multiplied with. */
export interface Term {
  readonly tensor: Tensor;
  readonly weight: number;
}

/** Σ weight · tensor in f32, of tensors of one shape. */
export async function weightedSum(terms: readonly Term[]): Promise<Tensor<'f32'>> {
  const { device, shape, length } = (terms[0] as Term).tensor;
  const out = device.empty('f32', shape);
  using flat = out.reshape([1, length]);
  using one = device.tensor('f32', Float32Array.of(1), [1, 1]);
  for (const [i, { tensor, weight }] of terms.entries()) {
    using wide = await tensor.to('f32');
    using row = wide.reshape([1, length]);
    await gemm(one, row, { out: flat, alpha: weight, beta: i === 0 ? 0 : 1 });
  }
  return out;
}

/** The sum of all squared elements. */
export async function squaredNorm(tensor: Tensor<'f32'>): Promise<number> {
  using row = tensor.reshape([1, tensor.length]);
  using product = await gemm(row, row, { transposeB: true });
  return ((await product.read()) as Float32Array)[0] as number;
}

/** The sum of the rows of a matrix. */
export async function sumOfRows(matrix: Tensor<'f32'>): Promise<Float32Array> {
  const rows = matrix.shape[0] as number;
  using ones = matrix.device.tensor('f32', new Float32Array(rows).fill(1), [1, rows]);
  using sum = await gemm(ones, matrix);
  return (await sum.read()) as Float32Array;
}

/** Rows whose products with each other are taken together, for the few on the diagonal. */
const NORM_ROWS = 16;

/** The Euclidean norms of the rows of a matrix. */
export async function rowNorms(matrix: Tensor<'f32'>): Promise<Float64Array> {
  const rows = matrix.shape[0] as number;
  const norms = new Float64Array(rows);
  const begins = Array.from({ length: Math.ceil(rows / NORM_ROWS) }, (_, i) => i * NORM_ROWS);
  const blocks = begins.map((begin) => matrix.rows(begin, Math.min(rows, begin + NORM_ROWS)));
  const products = await groupedGemm(blocks.map((block) => ({ a: block, b: block, transposeB: true })));
  for (const [i, product] of products.entries()) {
    const size = product.shape[0] as number;
    const values = (await product.read()) as Float32Array;
    for (let j = 0; j < size; j++) {
      norms[(begins[i] as number) + j] = Math.sqrt(values[j * size + j] as number);
    }
    product.dispose();
  }
  for (const block of blocks) block.dispose();
  return norms;
}
