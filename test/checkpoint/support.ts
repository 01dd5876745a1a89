import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach } from 'vitest';
import { elementCount } from '../../lib/checkpoint/safetensors/dtype.ts';
import { SafetensorsWriter, type TensorDeclaration } from '../../lib/checkpoint/safetensors/writer.ts';
import type { MolaeErrorCode } from '../../lib/errors.ts';

export const TINY = fileURLToPath(new URL('../fixtures/tiny-qwen2-moe', import.meta.url));

const folders: string[] = [];

afterEach(async () => {
  for (const folder of folders.splice(0)) await rm(folder, { recursive: true, force: true });
});

/** A fresh folder that is deleted after the test. */
export async function temporaryFolder(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'molae-test-'));
  folders.push(folder);
  return folder;
}

/** A safetensors file from its header (an object, or text as it is) and a number of data bytes. */
export function fileBytes(header: unknown, dataBytes: number): Uint8Array {
  const text = typeof header === 'string' ? header : JSON.stringify(header);
  const json = new TextEncoder().encode(text);
  const bytes = new Uint8Array(8 + json.byteLength + dataBytes);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(json.byteLength), true);
  bytes.set(json, 8);
  return bytes;
}

/** What a rejection with this code, and these words in its message, looks like to vitest. */
export function molaeError(code: MolaeErrorCode, ...words: string[]) {
  return {
    name: 'MolaeError',
    code,
    message: { asymmetricMatch: (m: unknown) => words.every((w) => String(m).includes(w)) },
  };
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
