import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, it, vi } from 'vitest';
import { readTokens } from '../../lib/cli/text.ts';
import { Tokenizer } from '../../lib/model/tokenizer.ts';
import { molaeError } from '../support/errors.ts';
import { fixture, TINY } from '../support/fixtures.ts';
import { outputFolder } from '../support/temporary.ts';

const folder = await outputFolder('text');
const tokenizer = await Tokenizer.open(TINY);
const TEXT = fixture('moby-dick.txt');
const text = await readFile(TEXT, 'utf8');

it.each([1, 2, 37, 1000, 5000])('the first %i tokens of a text are those of all of it', async (count) => {
  expect(await readTokens(TEXT, tokenizer, count)).toEqual(tokenizer.encode(text).slice(0, count));
});

it('a text has no more tokens than it has', async () => {
  const all = tokenizer.encode(text);
  expect(await readTokens(TEXT, tokenizer, 1e9)).toEqual(all);
  expect(await readTokens(TEXT, tokenizer)).toEqual(all);
});

it('a text of which some tokens are asked for is not cut into all of them', async () => {
  const large = join(folder, 'large.txt');
  await writeFile(large, text.repeat(20));
  const encode = vi.spyOn(tokenizer, 'encode');
  await readTokens(large, tokenizer, 100);
  const read = encode.mock.calls.reduce((sum, [part]) => sum + part.length, 0);
  encode.mockRestore();
  expect(read).toBeLessThan(text.length);
});

it.each([
  ['says so where that takes seconds', 4e6, 1],
  ['is silent where it does not', 4e6 - 1, 0],
])('cutting a text into tokens %s', async (_, length, lines) => {
  const path = join(folder, `text-of-${length}.txt`);
  await writeFile(path, 'x'.repeat(length));
  const stderr = vi.spyOn(process.stderr, 'write').mockReturnValue(true);
  await readTokens(path, { encode: () => [1, 2, 3] } as unknown as Tokenizer);
  const said = stderr.mock.calls.map(([line]) => line);
  stderr.mockRestore();
  expect(said).toHaveLength(lines);
  if (lines > 0) expect(said[0]).toBe(`cutting 4.0 M characters of ${path} into tokens\n`);
});

it.each([0, 1, 2, 3])(
  'a part that ends within a character, %i bytes after its first, is read all the same',
  async (before) => {
    const path = join(folder, `whales-${before}.txt`);
    await writeFile(path, `${'.'.repeat(before)}${'\u{1f40b}'.repeat(3000)}`);
    const all = tokenizer.encode(await readFile(path, 'utf8'));
    expect(await readTokens(path, tokenizer, 8)).toEqual(all.slice(0, 8));
  },
);

it('what is no UTF-8 is told as such', async () => {
  const path = join(folder, 'latin1.txt');
  await writeFile(path, Buffer.from('b\u00e4r', 'latin1'));
  await expect(readTokens(path, tokenizer)).rejects.toMatchObject(molaeError('IO', path, 'not UTF-8'));
});
