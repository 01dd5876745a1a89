import type { VerifiedLayers } from './layers.ts';
import { elementCount, tensorBytes } from './safetensors/dtype.ts';
import type { TensorDeclaration } from './safetensors/writer.ts';
import type { Shards } from './shards.ts';

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

/** The shapes of tensors in elements, of blocks too. */
export function elementShapes(
  names: Iterable<string>,
  shards: Shards,
  { blockShapes }: Pick<VerifiedLayers, 'blockShapes'>,
): { readonly shape: readonly number[] }[] {
  return [...names].map((name) => ({ shape: blockShapes.get(name) ?? shards.tensor(name).shape }));
}
