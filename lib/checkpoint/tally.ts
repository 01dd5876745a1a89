import { elementCount } from './safetensors/dtype.ts';
import type { ShardedTensor } from './shards.ts';

/** The elements of the given tensors, summed. */
export function countParameters(tensors: Iterable<ShardedTensor>): number {
  let total = 0;
  for (const { shape } of tensors) total += elementCount(shape) ?? 0;
  return total;
}

/** The bytes of the given tensors, summed; headers not counted. */
export function countBytes(tensors: Iterable<ShardedTensor>): number {
  let total = 0;
  for (const { byteLength } of tensors) total += byteLength;
  return total;
}
