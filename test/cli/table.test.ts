import { describe, expect, it } from 'vitest';
import { bytes, count, counted, duration, relative, table, times, wrap } from '../../lib/cli/table.ts';

describe('table', () => {
  it('aligns by column and trims the ends of lines', () => {
    expect(table([['', 'dense', 'x'], ['a', '1', ''], ['long']], ['left', 'right', 'left'])).toEqual([
      '      dense  x',
      'a         1',
      'long',
    ]);
  });

  it('wraps at spaces', () => {
    expect(wrap('one two three-is-long four', 8)).toEqual(['one two', 'three-is-long', 'four']);
  });
});

describe('numbers for people', () => {
  it.each([
    [0, '0'],
    [999, '999'],
    [1000, '1.0 k'],
    [4718592, '4.7 M'],
    [999_960, '1.0 M'],
    [99_960_000, '100 M'],
    [671e9, '671 G'],
  ])('count %d', (value, text) => expect(count(value)).toBe(text));

  it.each([
    [0, '0 files'],
    [1, '1 file'],
    [1234, '1234 files'],
  ])('counted %d', (value, text) => expect(counted(value, 'file')).toBe(text));

  it.each([
    [0, '0 B'],
    [9437184, '9.4 MB'],
  ])('bytes %d', (value, text) => expect(bytes(value)).toBe(text));

  it.each([
    [1.3125, '1.31×'],
    [0.0042, '0.0042×'],
    [0, '0.00×'],
  ])('times %d', (value, text) => expect(times(value)).toBe(text));

  it.each([
    [0, '0'],
    [1.234e-7, '1.2e-7'],
    [0.25, '0.2500'],
  ])('relative %d', (value, text) => expect(relative(value)).toBe(text));

  it.each([
    [0.0001, '1 ms'],
    [0.31, '0.3 s'],
    [59.7, '1 min 0 s'],
    [75, '1 min 15 s'],
    [700, '12 min'],
    [5400, '1 h 30 min'],
    [7199, '2 h 0 min'],
  ])('duration %d', (value, text) => expect(duration(value)).toBe(text));
});
