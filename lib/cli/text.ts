import { readFile } from 'node:fs/promises';
import { ModelConfig } from '../checkpoint/config.ts';
import { attempt, ioError } from '../files.ts';
import { Tokenizer } from '../model/tokenizer.ts';

/** A text file in UTF-8. Throws `IO`. */
export async function readText(path: string): Promise<string> {
  const bytes = await attempt('read', path, () => readFile(path));
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch (cause) {
    throw ioError('read', path, new Error('it is not UTF-8 text', { cause }));
  }
}

/** The tokenizer of a checkpoint; what is no checkpoint at all is told as such. */
export async function openTokenizer(checkpoint: string): Promise<Tokenizer> {
  await ModelConfig.read(checkpoint);
  return Tokenizer.open(checkpoint);
}
