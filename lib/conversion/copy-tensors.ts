import type { Checkpoint } from '../checkpoint/checkpoint.ts';
import type { SafetensorsWriter, TensorDeclaration } from '../checkpoint/safetensors/writer.ts';
import { throwIfAborted } from '../errors.ts';

/** Copied tensors go through memory in pieces of this size. */
const COPY_BYTES = 16 * 1024 ** 2;

/** Copies tensors of a checkpoint: byte for byte, or expanded where they are declared with another dtype than they are stored in. */
export async function copyTensors(
  { shards, weights }: Checkpoint,
  writer: SafetensorsWriter,
  tensors: readonly TensorDeclaration[],
  signal: AbortSignal | undefined,
): Promise<void> {
  const largest = tensors.reduce((most, { name }) => Math.max(most, shards.tensor(name).byteLength), 0);
  const buffer = new Uint8Array(Math.min(COPY_BYTES, largest));
  for (const { name, dtype } of tensors) {
    const { byteLength, dtype: stored } = shards.tensor(name);
    if (dtype !== stored) {
      for await (const { bytes, byteOffset } of weights.pieces(name, COPY_BYTES)) {
        throwIfAborted(signal);
        await writer.write(name, bytes, byteOffset);
      }
      continue;
    }
    for (let begin = 0; begin < byteLength; begin += COPY_BYTES) {
      throwIfAborted(signal);
      const length = Math.min(COPY_BYTES, byteLength - begin);
      await writer.write(name, await shards.readRange(name, begin, length, buffer), begin);
    }
  }
}
