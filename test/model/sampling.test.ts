import fc from 'fast-check';
import { expect, test } from 'vitest';
import { Sampler, type SamplingOptions } from '../../lib/model/sampling.ts';
import { mulberry32 } from '../../lib/random.ts';

const logits = Float32Array.from([1, 3, 2, 0].map(Math.log));

test('draws each token as often as its probability says', () => {
  const sampler = new Sampler({ temperature: 1, seed: 3 });
  const counts = [0, 0, 0, 0];
  for (let i = 0; i < 6000; i++)
    (counts[sampler.next(Float32Array.of(Math.log(1), Math.log(3), Math.log(2), -50))] as number)++;
  expect((counts[1] as number) / 6000).toBeCloseTo(1 / 2, 1);
  expect((counts[2] as number) / 6000).toBeCloseTo(1 / 3, 1);
  expect(counts[3]).toBe(0);
});

/** The tokens that are ever drawn. */
function drawn(options: SamplingOptions, logits: readonly number[]): number[] {
  const sampler = new Sampler({ ...options, seed: 4 });
  return [...new Set(Array.from({ length: 500 }, () => sampler.next(Float32Array.from(logits))))].sort();
}

// 1, 3 and 2 sixths, and none.
const sixths = [0, Math.log(3), Math.log(2), -50];

test('topP keeps the fewest tokens that reach it', () => {
  expect([0.5, 0.8, 0.9].map((topP) => drawn({ topP }, sixths))).toEqual([[1], [1, 2], [0, 1, 2]]);
});

test('topK keeps so many of the most likely tokens, the lower ones of equals', () => {
  const kept = [1, 2, 3, 4, 5].map((topK) => drawn({ topK }, [1, 2, 1, 1]));
  expect(kept).toEqual([[1], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3]]);
});

test('minP keeps the tokens that have that share of the probability of the most likely one', () => {
  const kept = [0, 0.3, 0.5, 1].map((minP) => drawn({ minP }, sixths));
  expect(kept).toEqual([[0, 1, 2], [0, 1, 2], [1, 2], [1]]);
});

test('topK, topP, minP or a seed alone ask for a draw, at temperature 1; a temperature of 0 does not draw', () => {
  const draws = (options: SamplingOptions) => {
    const sampler = new Sampler(options);
    return Array.from({ length: 20 }, () => sampler.next(Float32Array.from(sixths)));
  };
  expect(draws({ topP: 0.9 })).toEqual(draws({ temperature: 1, topP: 0.9 }));
  expect(draws({ topK: 3 })).toEqual(draws({ temperature: 1, topK: 3 }));
  expect(draws({ minP: 0.1 })).toEqual(draws({ temperature: 1, minP: 0.1 }));
  expect(draws({ seed: 5 })).toEqual(draws({ temperature: 1, seed: 5 }));
  expect(new Set(draws({ seed: 5 })).size).toBeGreaterThan(1);
  const greedy = new Array(20).fill(1);
  expect(draws({})).toEqual(greedy);
  expect(draws({ temperature: 0, topP: 0.9, seed: 5 })).toEqual(greedy);
});

test('logits that are not finite, and senseless options, are refused', () => {
  expect(() => new Sampler().next(logits)).toThrow(expect.objectContaining({ code: 'NON_FINITE' }));
  const senseless = [
    { temperature: -1 },
    ...[0, -1, 1.5, Number.NaN].map((topK) => ({ topK })),
    ...[0, 1.1].map((topP) => ({ topP })),
    ...[-0.1, 1.1, Number.NaN].map((minP) => ({ minP })),
    { seed: 0.5 },
  ];
  for (const options of senseless) {
    expect(() => new Sampler(options)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  }
});

type Options = Required<{ [K in keyof SamplingOptions]: number }>;

/** The definition in plain words: sort all tokens, cut them off, walk until the drawn share of their weight is used up. */
function plainly(
  logits: readonly number[],
  { temperature, topK, topP, minP }: Options,
  uniform: number,
): number {
  const largest = Math.max(...logits);
  const weights = logits.map((logit) => Math.exp((logit - largest) / temperature));
  const weight = (token: number) => weights[token] as number;
  const sumOf = (tokens: readonly number[]) => tokens.reduce((sum, token) => sum + weight(token), 0);
  let tokens = logits.map((_, token) => token);
  if (topK < tokens.length || topP < 1 || minP > 0) {
    const all = topK < tokens.length ? undefined : sumOf(tokens);
    tokens = tokens.sort((a, b) => weight(b) - weight(a) || a - b).slice(0, topK);
    const enough = topP * (all ?? sumOf(tokens));
    let reached = 0;
    const last = tokens.findIndex((token) => {
      reached += weight(token);
      return reached >= enough;
    });
    if (topP < 1 && last >= 0) tokens = tokens.slice(0, last + 1);
    tokens = tokens.filter((token) => weight(token) >= minP);
  }
  let left = uniform * sumOf(tokens);
  for (const token of tokens) {
    left -= weight(token);
    if (left < 0) return token;
  }
  return logits.indexOf(largest);
}

function expectPlain(given: readonly number[], options: Options) {
  const logits = Float32Array.from(given);
  const sampler = new Sampler(options);
  const uniform = mulberry32(options.seed);
  for (let i = 0; i < 8; i++) expect(sampler.next(logits)).toBe(plainly([...logits], options, uniform()));
}

const seeds = fc.integer({ min: 0, max: 2 ** 31 });
const shares = fc.oneof(
  fc.double({ min: 1e-9, max: 1, noNaN: true }),
  fc.constantFrom(0.5, 0.9, 0.95, 1 - 1e-9, 1 - 1e-15, 1 - 2 ** -53, 1),
);
const counts = fc.oneof(fc.integer({ min: 1, max: 70 }), fc.constant(1000));
const leasts = fc.oneof(fc.double({ min: 0, max: 1, noNaN: true }), fc.constantFrom(0, 0.1, 1));
const temperatures = fc.oneof(
  fc.double({ min: 0.05, max: 5, noNaN: true }),
  fc.constantFrom(5e-324, 1, 1e308),
);

test('every draw is that of the plain definition, also among equal tokens and for any share', () => {
  // Few values, so that many tokens are as likely as others; and any values.
  const value = fc.oneof(fc.constantFrom(-40, -1, 0, 2, 2.5), fc.float({ min: -60, max: 60, noNaN: true }));
  fc.assert(
    fc.property(
      fc.array(value, { minLength: 1, maxLength: 60 }),
      fc.record({ temperature: temperatures, topK: counts, topP: shares, minP: leasts, seed: seeds }),
      expectPlain,
    ),
    { numRuns: 2000 },
  );
});

test('draws from a large vocabulary are those of the plain definition', () => {
  const uniform = mulberry32(9);
  const logits = Array.from({ length: 15_000 }, (_, token) => 3 * uniform() + (token % 977 === 0 ? 9 : 0));
  for (const topK of [1, 50, 9000, 15_000]) {
    for (const topP of [0.3, 0.999, 1]) {
      for (const minP of [0, 1e-3]) expectPlain(logits, { temperature: 0.8, topK, topP, minP, seed: 5 });
    }
  }
});
