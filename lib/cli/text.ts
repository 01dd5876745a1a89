import { type FileHandle, open } from 'node:fs/promises';
import { text as readAll } from 'node:stream/consumers';
import { ModelConfig } from '../checkpoint/config.ts';
import { attempt, ioError } from '../files.ts';
import { Tokenizer } from '../model/tokenizer.ts';
import { count } from './table.ts';

/** What names standard input in place of a file. */
const STDIN = '-';

/** Standard input where that is what a value asks for, else the value itself. Throws `IO`. */
export function textOrStdin(value: string): Promise<string> {
  return value === STDIN
    ? attempt('read', 'standard input', () => readAll(process.stdin))
    : Promise.resolve(value);
}

/**
 * The first `most` token ids of a text file in UTF-8, all where there are fewer; `-` is standard input. As much of it is
 * read as they need, and more than that: how the end of a part is cut into tokens depends on what follows. Throws `IO`.
 */
export async function readTokens(
  path: string,
  tokenizer: Tokenizer,
  most = Number.POSITIVE_INFINITY,
): Promise<number[]> {
  const file = await attempt('read', path, () => open(fileOf(path)));
  try {
    const stats = await attempt('read', path, () => file.stat());
    // A pipe has no size, and is read once.
    if (!stats.isFile()) {
      const all = await attempt('read', path, () => file.readFile());
      return encode(path, decode(path, all), tokenizer).slice(0, most);
    }
    const size = stats.size;
    for (let bytes = most * BYTES_PER_TOKEN; ; bytes *= 2) {
      const part = await attempt('read', path, () => readStart(file, Math.min(bytes, size)));
      const ids = encode(path, decode(path, part, bytes < size), tokenizer);
      if (bytes >= size || ids.length >= most + TOKENS_OF_MARGIN) return ids.slice(0, most);
    }
  } finally {
    await file.close();
  }
}

/** Of most texts; of others more is read. */
const BYTES_PER_TOKEN = 16;
const TOKENS_OF_MARGIN = 256;

/** Characters that take so long that people wonder. */
const LONG_TEXT = 4e6;

function encode(path: string, text: string, tokenizer: Tokenizer): number[] {
  if (text.length >= LONG_TEXT) {
    process.stderr.write(`cutting ${count(text.length)} characters of ${path} into tokens\n`);
  }
  return tokenizer.encode(text);
}

async function readStart(file: FileHandle, bytes: number): Promise<Uint8Array> {
  const start = Buffer.allocUnsafe(bytes);
  let read = 0;
  for (let more = 1; more > 0 && read < bytes; read += more) {
    more = (await file.read(start, read, bytes - read, read)).bytesRead;
  }
  return start.subarray(0, read);
}

function fileOf(path: string): string {
  return path === STDIN ? '/dev/stdin' : path;
}

/** @param continues whether more follows, so that the last character may be cut */
function decode(path: string, bytes: Uint8Array, continues = false): string {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes, { stream: continues });
  } catch (cause) {
    const isTooLong = cause instanceof Error && 'code' in cause && cause.code === 'ERR_STRING_TOO_LONG';
    const problem = isTooLong
      ? `it has ${bytes.length} bytes, and a string holds no more than half a gigabyte: give a part of it`
      : 'it is not UTF-8 text';
    throw ioError('read', path, new Error(problem, { cause }));
  }
}

/** The tokenizer of a checkpoint; what is no checkpoint at all is told as such. */
export async function openTokenizer(checkpoint: string): Promise<Tokenizer> {
  await ModelConfig.read(checkpoint);
  return Tokenizer.open(checkpoint);
}
