import fc from 'fast-check';
import { expect, test } from 'vitest';
import { StopText } from '../../lib/model/stop-text.ts';
import { molaeError } from '../support/errors.ts';

/** What of the pieces is given, piece by piece, and how it ended. */
function read(stops: readonly string[], pieces: readonly string[]) {
  const stop = new StopText(stops);
  const given = pieces.map((piece) => stop.add(piece));
  return { given: [...given, stop.end()], found: stop.found };
}

test('what may be the beginning waits, and comes when it was none', () => {
  expect(read(['\n\n'], ['a\n', 'b', '\n'])).toEqual({ given: ['a', '\nb', '', '\n'], found: undefined });
});

test('the text ends before the string, also where pieces divide it, and nothing follows', () => {
  expect(read(['User:'], ['Yes. Us', 'er', ': no', 'more'])).toEqual({
    given: ['Yes. ', '', '', '', ''],
    found: 'User:',
  });
});

test('without strings a text comes as it is', () => {
  expect(read([], ['a', 'b'])).toEqual({ given: ['a', 'b', ''], found: undefined });
});

test('an empty string is refused, and a string in place of an array', () => {
  expect(() => new StopText('User:' as unknown as string[])).toThrow(
    expect.objectContaining(molaeError('INVALID_ARGUMENT', 'an array of strings')),
  );
  expect(() => new StopText(['x', ''])).toThrow(
    expect.objectContaining(molaeError('INVALID_ARGUMENT', 'not empty')),
  );
});

test('however a text is cut into pieces, it ends before the string that is complete first', () => {
  // Few letters, so that strings begin again and again, also within each other.
  const word = (minLength: number, maxLength: number) =>
    fc.array(fc.constantFrom('a', 'b'), { minLength, maxLength }).map((letters) => letters.join(''));
  fc.assert(
    fc.property(
      fc.array(word(1, 4), { maxLength: 3 }),
      fc.array(word(0, 5), { maxLength: 8 }),
      (stops, pieces) => {
        const { given, found } = read(stops, pieces);
        expect({ text: given.join(''), found }).toEqual(plainly(stops, pieces.join('')));
      },
    ),
    { numRuns: 2000 },
  );
});

/** The definition: letter by letter, until the text ends with one of the strings; the longest of them. */
function plainly(stops: readonly string[], text: string) {
  const longestFirst = stops.toSorted((a, b) => b.length - a.length);
  for (let length = 1; length <= text.length; length++) {
    const begin = text.slice(0, length);
    const found = longestFirst.find((stop) => begin.endsWith(stop));
    if (found !== undefined) return { text: begin.slice(0, -found.length), found };
  }
  return { text, found: undefined };
}
