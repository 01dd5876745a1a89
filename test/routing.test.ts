import fc from 'fast-check';
import { afterAll, expect, test } from 'vitest';
import { DenseExperts } from '../lib/experts.ts';
import { type RouterSpec, route } from '../lib/routing.ts';
import { openTestDevice, settled } from './support/device.ts';
import { Random, toTensor } from './support/random.ts';

const device = await openTestDevice();
afterAll(() => device.dispose());

/** Scores and what they are compared by, in f64; `margin`: how clearly the groups were chosen. */
function score(logits: Float64Array, spec: RouterSpec, bias: Float64Array | undefined) {
  const largest = Math.max(...logits);
  const exp = logits.map((v) => Math.exp(v - largest));
  const sum = exp.reduce((a, b) => a + b, 0);
  const scores =
    spec.scoring === 'sigmoid' ? logits.map((v) => 1 / (1 + Math.exp(-v))) : exp.map((e) => e / sum);
  const choice = scores.map((s, i) => s + (bias?.[i] ?? 0));
  let margin = 1;
  if (spec.groupLimit) {
    const { numGroups, chosenGroups, score: kind } = spec.groupLimit;
    const size = logits.length / numGroups;
    const groups = Array.from({ length: numGroups }, (_, g) => {
      const best = [...choice.slice(g * size, (g + 1) * size)].sort((a, b) => b - a);
      return { g, value: (best[0] as number) + (kind === 'top2' ? (best[1] ?? 0) : 0) };
    }).sort((a, b) => b.value - a.value || a.g - b.g);
    const last = groups[chosenGroups - 1];
    const next = groups[chosenGroups];
    if (last && next) margin = last.value - next.value;
    for (const { g } of groups.slice(chosenGroups))
      choice.fill(Number.NEGATIVE_INFINITY, g * size, (g + 1) * size);
  }
  return { scores, choice, margin };
}

/** PhiMoE's inference routing as its authors and transformers have it, in f64. */
function sparseMixer(logits: Float64Array, topK: number, jitter: number) {
  const left = logits.slice();
  return Array.from({ length: topK }, () => {
    const largest = Math.max(...left);
    const id = left.indexOf(largest);
    let sum = 0;
    let margin = 1;
    logits.forEach((l, i) => {
      const distance = (largest - l) / Math.max(Math.abs(l), largest);
      if (left[i] !== Number.NEGATIVE_INFINITY) margin = Math.min(margin, Math.abs(distance - 2 * jitter));
      if (distance <= 2 * jitter) sum += Math.exp((left[i] as number) - largest);
    });
    left[id] = Number.NEGATIVE_INFINITY;
    return { id, weight: 1 / sum, margin };
  });
}

const specs = fc.record({
  scoring: fc.constantFrom('softmax' as const, 'sigmoid' as const),
  renormalize: fc.boolean(),
  scalingFactor: fc.constantFrom(undefined, 1, 2.5, 16),
  biased: fc.boolean(),
  groupSize: fc.constantFrom(0, 1, 2, 4, 8),
  groupScore: fc.constantFrom('max' as const, 'top2' as const),
});

test('route equals the plain f64 formula: scoring, bias, group limits, renormalization, scaling, any sizes', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.integer(),
      fc.integer({ min: 0, max: 200 }),
      fc.integer({ min: 1, max: 16 }),
      fc.double({ min: 0, max: 1, noNaN: true }),
      specs,
      async (seed, tokens, count, share, { biased, groupSize, groupScore, ...rest }) => {
        const random = new Random(seed);
        const experts = count * Math.max(groupSize, 4);
        const numGroups = groupSize === 0 ? 0 : experts / groupSize;
        const chosenGroups = 1 + random.integer(Math.max(numGroups, 1));
        const eligible = groupSize === 0 ? experts : chosenGroups * groupSize;
        const topK = 1 + Math.floor(share * (eligible - 1));
        const spec: RouterSpec = {
          ...rest,
          topK,
          ...(groupSize > 0 && { groupLimit: { numGroups, chosenGroups, score: groupScore } }),
        };
        const logits = random.matrix(tokens, experts, 3);
        const bias = biased ? random.matrix(1, experts, 0.2).data : undefined;
        using input = toTensor(device, 'f32', logits);
        const correctionBias = bias && device.tensor('f32', Float32Array.from(bias), [experts]);
        const routing = await route(input, spec, { correctionBias });
        const [ids, weights] = [await routing.ids.read(), await routing.weights.read()];
        for (let t = 0; t < tokens; t++) {
          const row = logits.data.subarray(t * experts, (t + 1) * experts);
          const { scores, choice, margin } = score(row, spec, bias);
          if (margin < 1e-5) continue; // f32 may see the groups the other way round
          const wanted = [...choice].sort((a, b) => b - a).slice(0, topK);
          const chosen = [...ids.subarray(t * topK, (t + 1) * topK)];
          expect(new Set(chosen).size).toBe(topK);
          const sum = chosen.reduce((total, id) => total + (scores[id] as number), 0);
          chosen.forEach((id, k) => {
            // By value, not by index: two scores may be closer than f32 can tell.
            expect(Math.abs((choice[id] as number) - (wanted[k] as number))).toBeLessThan(1e-6);
            const weight =
              ((scores[id] as number) / (spec.renormalize ? sum + 1e-20 : 1)) * (spec.scalingFactor ?? 1);
            expect(Math.abs((weights[t * topK + k] as number) - weight)).toBeLessThan(
              1e-6 * (spec.scalingFactor ?? 1),
            );
          });
        }
      },
    ),
    { numRuns: 200 },
  );
});

test("the sparsemixer equals PhiMoE's inference routing in f64", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.integer(),
      fc.integer({ min: 1, max: 64 }),
      fc.integer({ min: 2, max: 40 }),
      fc.constantFrom(0, 0.01, 0.1, 0.4),
      async (seed, tokens, experts, jitter) => {
        const topK = Math.min(experts, 1 + (Math.abs(seed) % 3));
        const logits = new Random(seed).matrix(tokens, experts, 2);
        const routing = await route(toTensor(device, 'f32', logits), {
          scoring: 'sparsemixer',
          topK,
          renormalize: false,
          jitter,
        });
        const [ids, weights] = [await routing.ids.read(), await routing.weights.read()];
        for (let t = 0; t < tokens; t++) {
          const row = logits.data.subarray(t * experts, (t + 1) * experts);
          sparseMixer(row, topK, jitter).forEach(({ id, weight, margin }, k) => {
            expect(ids[t * topK + k]).toBe(id);
            if (margin > 1e-6)
              expect(Math.abs((weights[t * topK + k] as number) - weight)).toBeLessThan(1e-6);
          });
        }
      },
    ),
    { numRuns: 100 },
  );
});

test("Granite's order, top-k before softmax, is softmax with renormalized top-k", async () => {
  const logits = new Random(5).matrix(100, 40, 4);
  const routing = await route(toTensor(device, 'f32', logits), {
    scoring: 'softmax',
    topK: 8,
    renormalize: true,
  });
  const [ids, weights] = [await routing.ids.read(), await routing.weights.read()];
  for (let t = 0; t < 100; t++) {
    const row = logits.data.subarray(t * 40, (t + 1) * 40);
    const order = [...row.keys()].sort((a, b) => (row[b] as number) - (row[a] as number)).slice(0, 8);
    const exp = order.map((i) => Math.exp((row[i] as number) - (row[order[0] as number] as number)));
    const sum = exp.reduce((a, b) => a + b, 0);
    expect([...ids.subarray(t * 8, (t + 1) * 8)]).toEqual(order);
    exp.forEach((e, k) => {
      expect(Math.abs((weights[t * 8 + k] as number) - e / sum)).toBeLessThan(1e-6);
    });
  }
});

test('scores that all underflow give weights of 0, not NaN; experts outside the groups are never chosen', async () => {
  const deep = device.tensor('f32', new Float32Array(4).fill(-200), [1, 4]);
  const { weights } = await route(deep, { scoring: 'sigmoid', topK: 2, renormalize: true });
  expect([...(await weights.read())]).toEqual([0, 0]);
  // Every choice of the first group is negative: zero in place of -infinity would let the others in.
  const logits = device.tensor('f32', Float32Array.of(1, 2, -9, -9), [1, 4]);
  const correctionBias = device.tensor('f32', Float32Array.of(-3, -3, -9, -9), [4]);
  const { ids } = await route(
    logits,
    {
      scoring: 'sigmoid',
      topK: 2,
      renormalize: true,
      groupLimit: { numGroups: 2, chosenGroups: 1, score: 'top2' },
    },
    { correctionBias },
  );
  expect([...(await ids.read())]).toEqual([1, 0]);
});

test.each<[string, Partial<RouterSpec>, RegExp]>([
  ['an unknown scoring', { scoring: 'tanh' as 'softmax' }, /softmax, sigmoid or sparsemixer .*"tanh"/],
  [
    'groups that do not divide the experts',
    { groupLimit: { numGroups: 5, chosenGroups: 1, score: 'max' } },
    /divisor of the 8 experts .*5/,
  ],
  [
    'more groups chosen than there are',
    { groupLimit: { numGroups: 2, chosenGroups: 3, score: 'max' } },
    /1 to 2 for chosenGroups .*3/,
  ],
  ['no groups', { groupLimit: { numGroups: 0, chosenGroups: 0, score: 'max' } }, /groupLimit.numGroups .*0/],
  [
    'fewer experts in the groups than topK',
    { topK: 5, groupLimit: { numGroups: 4, chosenGroups: 2, score: 'top2' } },
    /topK is 5, .* only 4/,
  ],
  [
    'an unknown score of groups',
    { groupLimit: { numGroups: 4, chosenGroups: 2, score: 'mean' as 'max' } },
    /max or top2 .*"mean"/,
  ],
  ['NaN as the factor', { scalingFactor: Number.NaN }, /finite number for scalingFactor/],
  ['a negative jitter', { scoring: 'sparsemixer', jitter: -1 }, /from 0 on for jitter .*-1/],
  [
    'a sparsemixer with groups',
    { scoring: 'sparsemixer', groupLimit: { numGroups: 4, chosenGroups: 2, score: 'max' } },
    /neither groups nor a correction bias/,
  ],
])('%s is refused', async (_, fields, message) => {
  const call = route(device.tensor('f32', new Float32Array(8), [1, 8]), {
    scoring: 'softmax',
    topK: 2,
    renormalize: true,
    ...fields,
  });
  await expect(call).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  await expect(call).rejects.toThrow(message);
});

test('a correction bias of another shape, or with NaN, is refused', async () => {
  const logits = device.tensor('f32', new Float32Array(8), [1, 8]);
  const spec = { scoring: 'sigmoid', topK: 2, renormalize: true } as const;
  const bias = (values: number[]) => ({
    correctionBias: device.tensor('f32', Float32Array.from(values), [values.length]),
  });
  await expect(route(logits, spec, bias([1]))).rejects.toMatchObject({ code: 'SHAPE_MISMATCH' });
  const nan = settled(device, route(logits, spec, bias([0, 0, 0, Number.NaN, 0, 0, 0, 0])));
  await expect(nan).rejects.toMatchObject({ code: 'NON_FINITE', message: expect.stringContaining('at 3') });
});

test('equal logits go to the lower index; −infinity masks an expert', async () => {
  const logits = device.tensor('f32', Float32Array.of(1, 2, 2, 2, Number.NEGATIVE_INFINITY, 0), [1, 6]);
  const { ids, weights } = await route(logits, { scoring: 'softmax', topK: 6, renormalize: false });
  expect([...(await ids.read())]).toEqual([1, 2, 3, 0, 5, 4]);
  expect((await weights.read())[5]).toBe(0);
});

test('the sparsemixer refuses a token with more choices than experts that are not masked', async () => {
  const data = new Float32Array(8).fill(Number.NEGATIVE_INFINITY);
  data.set([1, 1]);
  data[4] = 1;
  const logits = device.tensor('f32', data, [2, 4]);
  const call = settled(device, route(logits, { scoring: 'sparsemixer', topK: 2, renormalize: false }));
  await expect(call).rejects.toMatchObject({
    code: 'NON_FINITE',
    message: expect.stringContaining('token 1'),
  });
});

test.each(['softmax', 'sigmoid', 'sparsemixer'] as const)(
  '%s: NaN logits name the token',
  async (scoring) => {
    const data = new Float32Array(40);
    data[27] = Number.NaN;
    const logits = device.tensor('f32', data, [10, 4]);
    const call = settled(device, route(logits, { scoring, topK: 2, renormalize: true }));
    await expect(call).rejects.toMatchObject({
      code: 'NON_FINITE',
      message: expect.stringContaining('token 6'),
    });
  },
);

test('bad routing is refused: ids out of range, an expert twice, wrong shapes and dtypes', async () => {
  const random = new Random(1);
  const w = (rows: number, cols: number) =>
    Array.from({ length: 3 }, () => toTensor(device, 'f32', random.matrix(rows, cols)));
  using layer = new DenseExperts({ gate: w(4, 5), up: w(4, 5), down: w(5, 4) });
  const x = device.empty('f32', [2, 5]);
  const call = (ids: number[], shape = [2, 2]) =>
    settled(
      device,
      layer.forward(x, {
        ids: device.tensor('i32', Int32Array.from(ids), shape),
        weights: device.tensor('f32', new Float32Array(ids.length), shape),
      }),
    );
  await expect(call([0, 1, 2, 3])).rejects.toMatchObject({
    code: 'INVALID_ARGUMENT',
    message: expect.stringContaining(
      device.kind === 'cuda' ? 'token 1 to expert 3' : 'token 1 to expert 3 of 3',
    ),
  });
  await expect(call([0, -1, 1, 2])).rejects.toMatchObject({
    code: 'INVALID_ARGUMENT',
    message: expect.stringContaining('token 0 to expert -1'),
  });
  await expect(call([0, 1, 2, 2])).rejects.toMatchObject({
    code: 'INVALID_ARGUMENT',
    message: expect.stringContaining('expert 2 twice'),
  });
  await expect(call([0, 1, 2], [3, 1])).rejects.toMatchObject({ code: 'SHAPE_MISMATCH' });
  await expect(call([0, 1, 2, 0, 1, 2, 0, 1], [2, 4])).rejects.toMatchObject({
    code: 'INVALID_ARGUMENT',
    message: expect.stringContaining('at most 3 experts'),
  });
  const long = [0, 2 ** 52];
  await expect(
    layer.forward(device.empty('f32', [0, 5]), {
      ids: device.empty('i32', long),
      weights: device.empty('f32', long),
    }),
  ).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  const weights = device.empty('f32', [2, 2]);
  await expect(layer.forward(x, { ids: weights as never, weights })).rejects.toMatchObject({
    code: 'DTYPE_MISMATCH',
  });
  await expect(
    layer.forward(device.empty('f32', [2, 6]), { ids: device.empty('i32', [2, 2]), weights }),
  ).rejects.toMatchObject({ code: 'SHAPE_MISMATCH' });
  layer.dispose();
  await expect(call([0, 1, 1, 2])).rejects.toMatchObject({ code: 'DISPOSED' });
});
