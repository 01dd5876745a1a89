import { readFile } from 'node:fs/promises';
import { MolaeError } from '../errors.ts';

/** A text file in UTF-8. Throws `IO`. */
export async function readText(path: string): Promise<string> {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(await readFile(path));
  } catch (cause) {
    const reason = cause instanceof TypeError ? 'it is not UTF-8 text' : (cause as Error).message;
    throw new MolaeError('IO', `Could not read ${path}: ${reason}`, { cause });
  }
}
