import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, it, vi } from 'vitest';
import { TextStream } from '../../lib/model/text-stream.ts';
import { Tokenizer } from '../../lib/model/tokenizer.ts';
import { TINY } from '../support/fixtures.ts';
import { outputFolder } from '../support/temporary.ts';

const byteLevel = await Tokenizer.open(TINY);

/** As of Llama and Mistral: ▁ for a space, which the first word loses, and bytes of what is not in the vocabulary. */
const metaspaceDefinition = {
  model: {
    type: 'BPE',
    byte_fallback: true,
    unk_token: '<unk>',
    vocab: vocabulary(['<unk>', '</s>', '▁', '▁the', '▁whale', 's', '.', ...bytes()]),
    merges: [],
  },
  added_tokens: [
    {
      id: 1,
      content: '</s>',
      special: true,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
    },
  ],
  decoder: {
    type: 'Sequence',
    decoders: [
      { type: 'Replace', pattern: { String: '▁' }, content: ' ' },
      { type: 'ByteFallback' },
      { type: 'Fuse' },
      { type: 'Strip', content: ' ', start: 1, stop: 0 },
    ],
  },
};
const metaspace = await made(metaspaceDefinition);

/** As of BERT: words with spaces between them, ## for what goes on with one. */
const wordPieces = await made({
  model: {
    type: 'WordPiece',
    unk_token: '[UNK]',
    continuing_subword_prefix: '##',
    max_input_chars_per_word: 100,
    vocab: vocabulary(['[UNK]', 'the', 'whale', '##s', 'white']),
  },
  decoder: { type: 'WordPiece', prefix: '##', cleanup: false },
});

const tokenizers: [string, Tokenizer, number][] = [
  ['bytes', byteLevel, 256],
  ['words and bytes', metaspace, 7 + 256],
  ['word pieces', wordPieces, 5],
];

describe.each(tokenizers)('a text that grows, of a tokenizer of %s', (_, tokenizer, size) => {
  it('is in pieces what it is as a whole, whatever its tokens', () => {
    fc.assert(
      fc.property(fc.array(fc.nat(size - 1), { maxLength: 40 }), (tokens) => {
        const stream = new TextStream(tokenizer);
        const text = tokens.map((token) => stream.add(token)).join('') + stream.end();
        expect(text).toBe(tokenizer.decode(tokens));
      }),
    );
  });

  it('goes on from a prompt as the two read together', () => {
    const some = fc.array(fc.nat(size - 1), { maxLength: 40 });
    fc.assert(
      fc.property(some, some, (prompt, tokens) => {
        const opening = tokenizer.decode(prompt);
        const whole = tokenizer.decode([...prompt, ...tokens]);
        fc.pre(whole.startsWith(opening)); // which it doesn't where the prompt ends within a character
        const stream = new TextStream(tokenizer, prompt);
        const text = tokens.map((token) => stream.add(token)).join('') + stream.end();
        expect(opening + text).toBe(whole);
      }),
    );
  });
});

it('has the space between a prompt and its first token, which by itself has none', () => {
  const [the, whale] = [3, 4];
  expect(new TextStream(metaspace).add(whale)).toBe('whale');
  expect(new TextStream(metaspace, [the]).add(whale)).toBe(' whale');
});

it('a character comes when its last byte has, and half of one at the end', () => {
  const tokens = [...new TextEncoder().encode('a€b')].map((byte) => 7 + byte);
  const stream = new TextStream(metaspace);
  expect(tokens.map((token) => stream.add(token))).toEqual(['a', '', '', '€', 'b']);
  expect(stream.end()).toBe('');
  for (const token of tokens.slice(0, 3)) stream.add(token);
  expect(stream.end()).toMatch(/^�+$/);
  expect(stream.add(tokens[0] as number)).toBe('a');
});

it('goes on after a tokenizer that takes back a space', async () => {
  const tidy = await made(metaspaceDefinition, true);
  const [the, space, stop, whale] = [3, 2, 6, 4];
  expect(tidy.decode([the, space, stop, whale])).toBe('the. whale');
  const stream = new TextStream(tidy);
  expect([the, space, stop, whale].map((token) => stream.add(token))).toEqual(['the', ' ', '.', ' whale']);
});

const END = 1;
const FIRST_OF_FOUR = 7 + 0xf0;

it.each([
  ['words', byteLevel, byteLevel.encode('Call me Ishmael. '.repeat(50))],
  ['bytes that are no characters', metaspace, Array(200).fill(FIRST_OF_FOUR)],
  ['special tokens', metaspace, [3, ...Array(200).fill(END), 4]],
])('of %s no piece decodes more than its own tokens and those of the one before', (_, tokenizer, tokens) => {
  const decode = vi.spyOn(tokenizer, 'decode');
  const stream = new TextStream(tokenizer);
  const text = tokens.map((token) => stream.add(token)).join('') + stream.end();
  expect(Math.max(...decode.mock.calls.map(([ids]) => ids.length))).toBeLessThanOrEqual(3);
  decode.mockRestore();
  expect(text).toBe(tokenizer.decode(tokens));
});

it('bytes that are no characters are given as they come', () => {
  const stream = new TextStream(metaspace);
  const pieces = Array.from({ length: 5 }, () => stream.add(FIRST_OF_FOUR));
  expect(pieces).toEqual(['', '�', '�', '�', '�']);
});

async function made(definition: object, cleanUp = false): Promise<Tokenizer> {
  const folder = await outputFolder('tokenizer');
  const rest = {
    version: '1.0',
    added_tokens: [],
    normalizer: null,
    pre_tokenizer: null,
    post_processor: null,
  };
  const config = { clean_up_tokenization_spaces: cleanUp };
  await writeFile(join(folder, 'tokenizer_config.json'), JSON.stringify(config));
  await writeFile(join(folder, 'tokenizer.json'), JSON.stringify({ ...rest, ...definition }));
  return Tokenizer.open(folder);
}

function vocabulary(tokens: readonly string[]): Record<string, number> {
  return Object.fromEntries(tokens.map((token, id) => [token, id]));
}

function bytes(): string[] {
  return Array.from({ length: 256 }, (_, byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`);
}
