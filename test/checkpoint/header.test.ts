import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { parseStrictJson } from '../../lib/checkpoint/json.ts';
import { parseHeader, parseHeaderLength } from '../../lib/checkpoint/safetensors/header.ts';
import { MolaeError } from '../../lib/errors.ts';
import { molaeError } from '../support/errors.ts';
import { fileBytes } from './support.ts';

/** Parses a header as it would be parsed in a file with this much data. */
function parse(header: unknown, dataBytes: number) {
  const file = fileBytes(header, dataBytes);
  const length = parseHeaderLength(file.subarray(0, 8), file.byteLength, 'f.safetensors');
  return parseHeader(file.subarray(8, 8 + length), file.byteLength, 'f.safetensors');
}

const tensor = (begin: number, end: number, shape: unknown = [end - begin], dtype: unknown = 'U8') => ({
  dtype,
  shape,
  data_offsets: [begin, end],
});

const bad = (...words: string[]) =>
  expect.objectContaining(molaeError('BAD_CHECKPOINT', 'f.safetensors', ...words));

describe('sound headers', () => {
  test('give dtype, shape, length and position, in the order of the bytes', () => {
    const { tensors, metadata } = parse(
      {
        __metadata__: { format: 'pt' },
        b: tensor(6, 8),
        a: tensor(0, 6, [3, 1], 'BF16'),
        s: tensor(8, 9, []),
      },
      9,
    );
    expect([...tensors.keys()]).toEqual(['a', 'b', 's']);
    expect(tensors.get('a')).toMatchObject({ dtype: 'BF16', shape: [3, 1], byteLength: 6 });
    expect((tensors.get('b')?.position ?? 0) - (tensors.get('a')?.position ?? 0)).toBe(6);
    expect(metadata).toEqual(new Map([['format', 'pt']]));
  });

  test('may have empty tensors anywhere, no tensors, spaces at the end and fields of other tools', () => {
    expect(parse({ e: tensor(2, 2, [0, 5]), a: tensor(0, 2), z: tensor(2, 3) }, 3).tensors.size).toBe(3);
    expect(parse('{}      ', 0).tensors.size).toBe(0);
    expect(parse({ a: { ...tensor(0, 1), note: { x: [1] } } }, 1).tensors.size).toBe(1);
  });

  test('may name tensors after properties of Object.prototype, and pollute nothing', () => {
    const names = ['__proto__', 'constructor', 'toString', '0'];
    const fields = names.map((name, i) => `${JSON.stringify(name)}:${JSON.stringify(tensor(i, i + 1))}`);
    const { tensors } = parse(`{${fields.join(',')}}`, 4);
    expect([...tensors.keys()]).toEqual(names);
    expect(({} as Record<string, unknown>).dtype).toBeUndefined();
  });

  test('may repeat keys in different objects and inside strings', () => {
    const text = `{"__metadata__":{"dtype":"\\"a\\":1,\\"a\\":2 \\\\"},"a":${JSON.stringify(tensor(0, 1))}}`;
    expect(parse(text, 1).metadata.get('dtype')).toBe('"a":1,"a":2 \\');
  });
});

describe('hostile lengths are refused', () => {
  const prefix = (length: bigint) => {
    const bytes = new Uint8Array(8);
    new DataView(bytes.buffer).setBigUint64(0, length, true);
    return bytes;
  };
  test.each([
    ['zero', 0n, 'never finished'],
    ['past 100 MB', 100_000_001n, '100000001'],
    ['past 2^53', 2n ** 64n - 1n, '18446744073709551615'],
    ['past the end of the file', 93n, 'cut off'],
  ])('%s', (_, length, words) => {
    expect(() => parseHeaderLength(prefix(length), 100, 'f.safetensors')).toThrow(bad(words));
  });

  test('a header that fills the file exactly is accepted', () => {
    expect(parseHeaderLength(prefix(92n), 100, 'f.safetensors')).toBe(92);
  });

  test('the pointer that Git LFS leaves, with the way to get the file', () => {
    const pointer = 'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 988097824\n';
    const bytes = new TextEncoder().encode(pointer);
    expect(() => parseHeaderLength(bytes.subarray(0, 8), bytes.length, 'f.safetensors')).toThrow(
      bad('git lfs pull'),
    );
    expect(() => parseStrictJson(bytes, 'f.safetensors')).toThrow(bad('git lfs pull'));
  });

  test('a file shorter than its length field', () => {
    expect(() => parseHeaderLength(new Uint8Array(7), 7, 'f.safetensors')).toThrow(bad('7'));
  });
});

describe('hostile headers are refused, naming tensor, field and value', () => {
  test.each<[string, unknown, number, string[]]>([
    ['text that is not JSON', '{"a":', 0, ['JSON']],
    ['an array', '[]', 0, ['{']],
    ['a space first', ' {}', 0, ['{']],
    ['a byte-order mark', '\uFEFF{}', 0, ['{']],
    ['more after the object', '{} {}', 0, ['JSON']],
    ['deep nesting', `{"a":${'['.repeat(1e6)}`, 0, ['nested']],
    ['metadata that is no object', { __metadata__: 'pt' }, 0, ['__metadata__', '"pt"']],
    ['metadata that is not text', { __metadata__: { n: 1 } }, 0, ['"n"', '1']],
    ['a tensor that is no object', { a: 7 }, 0, ['"a"', '7']],
    ['an unknown dtype', { a: tensor(0, 1, [1], 'F4') }, 1, ['"a"', 'dtype', '"F4"']],
    ['a dtype of Object.prototype', { a: tensor(0, 1, [1], 'toString') }, 1, ['dtype', '"toString"']],
    ['a dtype that is no string', { a: tensor(0, 1, [1], ['U8']) }, 1, ['dtype']],
    ['a missing shape', { a: { dtype: 'U8', data_offsets: [0, 1] } }, 1, ['"a"', 'shape', 'undefined']],
    ['a negative size', { a: tensor(0, 1, [-1, -1]) }, 1, ['shape', '[-1, -1]']],
    ['a fractional size', { a: tensor(0, 1, [0.5, 2]) }, 1, ['shape', '0.5']],
    ['a size past 2^53', { a: tensor(0, 1, [2 ** 53]) }, 1, ['shape']],
    ['a size that is text', { a: tensor(0, 1, ['1']) }, 1, ['shape', '"1"']],
    [
      'an infinite size',
      '{"a":{"dtype":"U8","shape":[1e999],"data_offsets":[0,1]}}',
      1,
      ['shape', 'Infinity'],
    ],
    ['elements that overflow', { a: tensor(0, 1, [2 ** 30, 2 ** 30]) }, 1, ['shape', '2^53']],
    ['elements that overflow before a zero', { a: tensor(0, 0, [2 ** 50, 2 ** 50, 0]) }, 0, ['2^53']],
    ['bytes that overflow', { a: tensor(0, 1, [2 ** 51], 'F64') }, 1, ['shape', '2^53']],
    ['missing offsets', { a: { dtype: 'U8', shape: [1] } }, 1, ['data_offsets', 'undefined']],
    ['one offset', { a: { dtype: 'U8', shape: [1], data_offsets: [0] } }, 1, ['data_offsets', '[0]']],
    ['a negative offset', { a: tensor(-1, 0, [1]) }, 1, ['data_offsets', '[-1, 0]']],
    ['offsets the wrong way round', { a: tensor(1, 0, [1]) }, 1, ['data_offsets', '[1, 0]']],
    ['offsets past the end', { a: tensor(0, 2) }, 1, ['"a"', '[0, 2]', '1 bytes']],
    ['a length that is not the shape', { a: tensor(0, 3, [2]) }, 3, ['"a"', '3 bytes', 'needs 2']],
    ['a length that is not the dtype', { a: tensor(0, 2, [2], 'F16') }, 2, ['needs 4']],
    ['tensors that overlap', { a: tensor(0, 4), b: tensor(3, 6) }, 6, ['"b"', 'inside tensor "a"']],
    ['the same bytes twice', { a: tensor(0, 4), b: tensor(0, 4) }, 4, ['"b"', 'inside tensor "a"']],
    ['a hole at the start', { a: tensor(1, 2) }, 2, ['"a"', 'hole of 1']],
    ['a hole in between', { a: tensor(0, 1), b: tensor(3, 4) }, 4, ['"b"', 'hole of 2']],
    ['bytes that no tensor has', { a: tensor(0, 1) }, 5, ['4 bytes', 'no tensor']],
    ['half a surrogate pair in a name', `{"\\ud800":${JSON.stringify(tensor(0, 1))}}`, 1, ['Unicode']],
  ])('%s', (_, header, dataBytes, words) => {
    expect(() => parse(header, dataBytes)).toThrow(bad(...words));
  });

  test('invalid UTF-8', () => {
    const file = fileBytes('{"aa":1}', 0);
    file[10] = 0xff;
    expect(() => parseHeader(file.subarray(8), file.byteLength, 'f.safetensors')).toThrow(bad('UTF-8'));
  });

  test.each([
    ['a tensor', `{"a":${JSON.stringify(tensor(0, 1))},"a":${JSON.stringify(tensor(0, 1))}}`, '"a"'],
    ['a tensor, once with escapes', `{"ab":${JSON.stringify(tensor(0, 1))} , "\\u0061b" :1}`, '"ab"'],
    ['a field', '{"a":{"dtype":"U8","shape":[1],"shape":[1],"data_offsets":[0,1]}}', '"shape"'],
    ['the metadata', '{"__metadata__":{},"__metadata__":{}}', '"__metadata__"'],
    ['__proto__', `{"__proto__":${JSON.stringify(tensor(0, 1))},"__proto__":1}`, '"__proto__"'],
  ])('a key twice: %s', (_, text, key) => {
    expect(() => parse(text, 1)).toThrow(bad('twice', key));
  });
});

test('whatever the bytes, parsing ends with tensors or a BAD_CHECKPOINT error', () => {
  const sound = new TextEncoder().encode(
    JSON.stringify({ a: tensor(0, 4, [2, 2]), b: tensor(4, 8, [1], 'F32') }),
  );
  const edits = fc.array(fc.tuple(fc.nat(sound.length - 1), fc.integer({ min: 0x20, max: 0x7e })), {
    minLength: 1,
    maxLength: 4,
  });
  let refused = 0;
  fc.assert(
    fc.property(edits, (changes) => {
      const bytes = sound.slice();
      for (const [at, byte] of changes) bytes[at] = byte;
      try {
        const { tensors } = parseHeader(bytes, 8 + bytes.byteLength + 8, 'f');
        const covered = [...tensors.values()].reduce((sum, { byteLength }) => sum + byteLength, 0);
        expect(covered).toBe(8);
      } catch (error) {
        if (!(error instanceof MolaeError)) throw error;
        expect(error.code).toBe('BAD_CHECKPOINT');
        refused++;
      }
    }),
    { numRuns: 2000 },
  );
  expect(refused).toBeGreaterThan(100);
});
