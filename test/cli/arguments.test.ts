import { expect, it } from 'vitest';
import { Arguments } from '../../lib/cli/arguments.ts';
import { COMMANDS } from '../../lib/cli/commands.ts';
import { parse } from '../../lib/cli/parse.ts';

const given = (value: string) => new Arguments([], new Map([['x', value]]));

it.each(['0.25', '.25', '2.5e-1'])('a number may be written %s', (text) => {
  expect(given(text).number('x', 0, 1)).toBe(0.25);
  expect(given(text).share('x')).toBe(0.25);
});

it.each(['', '-1', '1,5', '0x1', 'Infinity', '1e999', ' 1'])('%j is no number', (text) => {
  expect(() => given(text).number('x', 0, Number.MAX_VALUE)).toThrow('a number from 0 on for --x');
});

it.each(['0', '1.1', 'x'])('%j is no probability to reach', (text) => {
  expect(() => given(text).probability('x')).toThrow(
    `a number above 0, at most 1 for --x but received "${text}"`,
  );
});

it.each(['1', '1e-9'])('%s is one', (text) => {
  expect(given(text).probability('x')).toBe(Number(text));
});

it.each(['1.5', '-1', '1e3', '9007199254740993'])('%j is no integer from 0 on', (text) => {
  expect(() => given(text).integer('x')).toThrow('an integer from 0 on for --x');
});

it.each(['-0.5', '-.5'])('%s after an option is its value, a negative number, and no option', (text) => {
  const request = parse(['generate', 'model', '--temperature', text], COMMANDS);
  const args = request.kind === 'run' ? request.readArguments() : undefined;
  expect(args?.string('temperature')).toBe(text);
});
