import { describe, expect, it } from 'vitest';
import { parsePairsOptions } from '../../bench/pairs/options.ts';
import { compareTurns } from '../../bench/pairs/turns.ts';

const turns = (...all: number[]) => all.map((ms) => ({ ms, work: { flops: 1, bytes: 1 } }));

describe('two builds in turns', () => {
  it('are compared round by round, so that a machine that slows down for both changes nothing', () => {
    const { speedup, won, rounds } = compareTurns(turns(10, 40, 20), turns(5, 20, 10));
    expect({ speedup, won, rounds }).toEqual({
      speedup: { median: 2, low: 2, high: 2 },
      won: 3,
      rounds: 3,
    });
  });

  it('say how far rounds differ, and how many were won', () => {
    const { speedup, won } = compareTurns(turns(10, 10, 10), turns(8, 10, 20));
    expect(speedup).toEqual({ median: 1, low: 0.5, high: 1.25 });
    expect(won).toBe(1);
  });
});

describe('options of bench:pairs', () => {
  const asked = (...args: string[]) => parsePairsOptions(['--before', 'there', ...args]);

  it('name layers of a model, scaled down', () => {
    const options = asked('--model', 'OLMoE', '--experts', '16', '--kinds', 'latent', '--tokens', '1,64');
    expect(options?.cell).toMatchObject({ model: 'OLMoE', N: 16 });
    expect(options).toMatchObject({
      before: 'there',
      kinds: ['latent'],
      dtypes: ['f32', 'bf16'],
      tokens: [1, 64],
    });
  });

  it.each([
    [[], '--before: which folder?'],
    [['--before', 'x', '--tokens', '1,,4'], '--tokens: not a whole number of at least 1: '],
    [['--before', 'x', '--seconds', '0'], '--seconds: not a number above 0: 0'],
    [['--before', 'x', '--dtypes', 'f16'], '--dtypes: no such one: f16. There are f32, bf16'],
    [['--before', 'x', '--model', 'GPT'], '--model: no such model: GPT.'],
  ])('%j are refused with their name', (args, message) => {
    expect(() => parsePairsOptions(args)).toThrow(message);
  });
});
