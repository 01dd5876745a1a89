import fc from 'fast-check';
import { afterAll, expect, test } from 'vitest';
import { openDevice } from '../lib/device.ts';
import { DenseExperts } from '../lib/experts.ts';
import { route } from '../lib/routing.ts';
import { Random, toTensor } from './support/random.ts';

const device = await openDevice('cpu');
afterAll(() => device.dispose());

/** Softmax and top-k as plainly as they can be written. */
function reference(logits: Float64Array, topK: number, renormalize: boolean) {
  const largest = Math.max(...logits);
  const exp = logits.map((v) => Math.exp(v - largest));
  const sum = exp.reduce((a, b) => a + b, 0);
  const order = [...logits.keys()]
    .sort((a, b) => (logits[b] as number) - (logits[a] as number) || a - b)
    .slice(0, topK);
  const weights = order.map((i) => (exp[i] as number) / sum);
  const total = renormalize ? weights.reduce((a, b) => a + b, 0) : 1;
  return { ids: order, weights: weights.map((w) => w / total) };
}

test('route equals plain softmax and top-k for any sizes, with and without renormalization', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.integer(),
      fc.integer({ min: 0, max: 200 }),
      fc.integer({ min: 1, max: 70 }),
      fc.double({ min: 0, max: 1, noNaN: true }),
      fc.boolean(),
      async (seed, tokens, experts, share, renormalize) => {
        const topK = 1 + Math.floor(share * (experts - 1));
        const logits = new Random(seed).matrix(tokens, experts, 3);
        const routing = await route(toTensor(device, 'f32', logits), {
          scoring: 'softmax',
          topK,
          renormalize,
        });
        const [ids, weights] = [await routing.ids.read(), await routing.weights.read()];
        for (let t = 0; t < tokens; t++) {
          const wanted = reference(logits.data.subarray(t * experts, (t + 1) * experts), topK, renormalize);
          expect([...ids.subarray(t * topK, (t + 1) * topK)]).toEqual(wanted.ids);
          wanted.weights.forEach((w, k) => {
            expect(Math.abs((weights[t * topK + k] as number) - w)).toBeLessThan(1e-6);
          });
        }
      },
    ),
    { numRuns: 60 },
  );
});

test('equal logits go to the lower index; −infinity masks an expert', async () => {
  const logits = device.tensor('f32', Float32Array.of(1, 2, 2, 2, Number.NEGATIVE_INFINITY, 0), [1, 6]);
  const { ids, weights } = await route(logits, { scoring: 'softmax', topK: 6, renormalize: false });
  expect([...(await ids.read())]).toEqual([1, 2, 3, 0, 5, 4]);
  expect((await weights.read())[5]).toBe(0);
});

test('NaN logits name the token', async () => {
  const data = new Float32Array(40);
  data[27] = Number.NaN;
  const call = route(device.tensor('f32', data, [10, 4]), { scoring: 'softmax', topK: 2, renormalize: true });
  await expect(call).rejects.toMatchObject({
    code: 'NON_FINITE',
    message: expect.stringContaining('token 6'),
  });
});

test('bad routing is refused: ids out of range, an expert twice, wrong shapes and dtypes', async () => {
  const random = new Random(1);
  const w = (rows: number, cols: number) =>
    Array.from({ length: 3 }, () => toTensor(device, 'f32', random.matrix(rows, cols)));
  using layer = new DenseExperts({ gate: w(4, 5), up: w(4, 5), down: w(5, 4) });
  const x = device.empty('f32', [2, 5]);
  const call = (ids: number[], shape = [2, 2]) =>
    layer.forward(x, {
      ids: device.tensor('i32', Int32Array.from(ids), shape),
      weights: device.tensor('f32', new Float32Array(ids.length), shape),
    });
  await expect(call([0, 1, 2, 3])).rejects.toMatchObject({
    code: 'INVALID_ARGUMENT',
    message: expect.stringContaining('token 1 to expert 3 of 3'),
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
