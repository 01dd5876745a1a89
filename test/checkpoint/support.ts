import { elementCount } from '../../lib/checkpoint/safetensors/dtype.ts';
import { SafetensorsWriter, type TensorDeclaration } from '../../lib/checkpoint/safetensors/writer.ts';

/** A safetensors file from its header (an object, or text as it is) and a number of data bytes. */
export function fileBytes(header: unknown, dataBytes: number): Uint8Array {
  const text = typeof header === 'string' ? header : JSON.stringify(header);
  const json = new TextEncoder().encode(text);
  const bytes = new Uint8Array(8 + json.byteLength + dataBytes);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(json.byteLength), true);
  bytes.set(json, 8);
  return bytes;
}

/** Writes tensors whose bytes count 0 to 250 over and over, so that a wrong offset shows. */
export async function writeCounting(path: string, tensors: readonly TensorDeclaration[]): Promise<void> {
  const writer = await SafetensorsWriter.create(path, tensors);
  for (const { name, dtype, shape } of tensors) {
    const width = dtype === 'F32' ? 4 : dtype === 'BF16' ? 2 : 1;
    await writer.write(
      name,
      Uint8Array.from({ length: (elementCount(shape) ?? 0) * width }, (_, i) => i % 251),
    );
  }
  await writer.finish();
}
