import { readFile } from 'node:fs/promises';
import { attempt, ioError } from '../files.ts';

/** A text file in UTF-8. Throws `IO`. */
export async function readText(path: string): Promise<string> {
  const bytes = await attempt('read', path, () => readFile(path));
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch (cause) {
    throw ioError('read', path, new Error('it is not UTF-8 text', { cause }));
  }
}
