import { createHash } from 'node:crypto';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';

/** A fingerprint to compare: vitest compares large arrays element by element, which takes minutes. */
export function digest(data: NodeJS.TypedArray): string {
  return createHash('sha256').update(data).digest('hex');
}

/** Every file of a folder, with the fingerprint of its bytes. */
export async function contents(folder: string): Promise<Record<string, string>> {
  const names = (await readdir(folder)).sort();
  const entries = names.map(async (name) => [name, digest(await readFile(join(folder, name)))] as const);
  return Object.fromEntries(await Promise.all(entries));
}
