import { cp, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { openCheckpoint } from '../../lib/checkpoint/checkpoint.ts';

/** Copies a checkpoint to `copy`, with other bits for one 16-bit element of a tensor. */
export async function copyDamaged(
  source: string,
  copy: string,
  tensor: string,
  element: number,
  bits: number,
): Promise<void> {
  await cp(source, copy, { recursive: true });
  await using checkpoint = await openCheckpoint(copy);
  const { shard } = checkpoint.shards.tensor(tensor);
  const file = await readFile(join(copy, shard));
  const headerBytes = Number(file.readBigUInt64LE(0));
  const header = JSON.parse(file.subarray(8, 8 + headerBytes).toString());
  file.writeUInt16LE(bits, 8 + headerBytes + header[tensor].data_offsets[0] + 2 * element);
  await writeFile(join(copy, shard), file);
}
