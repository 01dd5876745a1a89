import { elementCount, tensorBytes } from './safetensors/dtype.ts';
import type { TensorDeclaration } from './safetensors/writer.ts';

/** The elements of all these tensors. */
export function countParameters(tensors: Iterable<Pick<TensorDeclaration, 'shape'>>): number {
  let total = 0;
  for (const { shape } of tensors) total += elementCount(shape) ?? Number.NaN;
  return total;
}

/** The bytes of all these tensors. */
export function countBytes(tensors: Iterable<Omit<TensorDeclaration, 'name'>>): number {
  let total = 0;
  for (const { dtype, shape } of tensors) total += tensorBytes(dtype, shape) ?? Number.NaN;
  return total;
}
