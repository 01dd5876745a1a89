import { fileURLToPath } from 'node:url';

/** A file or folder of test/fixtures. */
export function fixture(name: string): string {
  return fileURLToPath(new URL(`../fixtures/${name}`, import.meta.url));
}

/** The trained test model. */
export const TINY = fixture('tiny-qwen2-moe');
