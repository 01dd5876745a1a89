import fc from 'fast-check';
import { afterAll, describe, expect, test } from 'vitest';
import { Operations } from '../../lib/model/operations.ts';
import type { NativeSequence } from '../../lib/native.ts';
import { openTestDevice } from '../support/device.ts';
import { poisoned, Random, toTensor } from '../support/random.ts';
import { apply, type Matrix, matrix, relativeError } from '../support/reference.ts';

const device = await openTestDevice();
const operations = new Operations(device);
afterAll(() => device.dispose());

const row = (m: Matrix, i: number, from = 0, count = m.cols - from) =>
  m.data.subarray(i * m.cols + from, i * m.cols + from + count);

/** Causal attention by its definition. */
function attentionReference(
  q: Matrix,
  k: Matrix,
  v: Matrix,
  sequences: readonly NativeSequence[],
  s: { heads: number; kvHeads: number; headSize: number; valueSize: number; scale: number; window: number },
): Matrix {
  const out = matrix(q.rows, s.heads * s.valueSize);
  for (const [q0, q1, k0, k1] of sequences) {
    for (let t = q0; t < q1; t++) {
      const last = k1 - (q1 - 1 - t);
      const first = s.window > 0 ? Math.max(k0, last - s.window) : k0;
      for (let h = 0; h < s.heads; h++) {
        const kv = Math.floor(h / (s.heads / s.kvHeads));
        const query = row(q, t, h * s.headSize, s.headSize);
        const scores: number[] = [];
        for (let j = first; j < last; j++)
          scores.push(
            s.scale *
              row(k, j, kv * s.headSize, s.headSize).reduce((sum, x, i) => sum + x * (query[i] as number), 0),
          );
        const exp = scores.map((x) => Math.exp(x - Math.max(...scores)));
        const total = exp.reduce((a, b) => a + b, 0);
        for (let i = 0; i < s.valueSize; i++) {
          let sum = 0;
          exp.forEach((e, j) => {
            sum += (e / total) * (row(v, first + j)[kv * s.valueSize + i] as number);
          });
          out.data[t * out.cols + h * s.valueSize + i] = sum;
        }
      }
    }
  }
  return out;
}

describe('decoder operations equal plain f64 loops', () => {
  test('attention: grouped heads, ragged sequences with a past, sliding windows, values of another size', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.record({
          seed: fc.integer(),
          kvHeads: fc.integer({ min: 1, max: 3 }),
          share: fc.integer({ min: 1, max: 3 }),
          headSize: fc.integer({ min: 1, max: 20 }),
          valueSize: fc.integer({ min: 1, max: 20 }),
          window: fc.constantFrom(0, 0, 1, 3, 50),
          lengths: fc.array(
            fc.record({ queries: fc.integer({ min: 0, max: 90 }), past: fc.integer({ min: 0, max: 20 }) }),
            { maxLength: 4 },
          ),
        }),
        async ({ seed, kvHeads, share, headSize, valueSize, window, lengths }) => {
          const random = new Random(seed);
          const heads = kvHeads * share;
          const sequences: NativeSequence[] = [];
          let [queries, keys] = [0, 0];
          for (const { queries: n, past } of lengths) {
            sequences.push([queries, queries + n, keys, keys + past + n]);
            queries += n;
            keys += past + n;
          }
          const q = random.matrix(queries, heads * headSize);
          const k = random.matrix(keys, kvHeads * headSize);
          const v = random.matrix(keys, kvHeads * valueSize);
          const spec = { heads, kvHeads, headSize, valueSize, scale: 0.5, window };
          const out = poisoned(device, 'f32', [queries, heads * valueSize]);
          operations.attention(
            toTensor(device, 'f32', q),
            toTensor(device, 'f32', k),
            toTensor(device, 'f32', v),
            sequences,
            spec,
            out,
          );
          await operations.settle();
          expect(
            relativeError(await out.read(), attentionReference(q, k, v, sequences, spec).data),
          ).toBeLessThan(1e-5);
        },
      ),
      { numRuns: 60 },
    );
  });

  test('linear with and without bias, for any weight dtype and number of rows', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.record({
          seed: fc.integer(),
          rows: fc.constantFrom(0, 1, 2, 3, 4, 5, 17, 300),
          inner: fc.integer({ min: 1, max: 70 }),
          cols: fc.integer({ min: 1, max: 300 }),
          dtype: fc.constantFrom<'f32' | 'bf16' | 'f16'>('f32', 'bf16', 'f16'),
          biased: fc.boolean(),
        }),
        async ({ seed, rows, inner, cols, dtype, biased }) => {
          const random = new Random(seed);
          const x = random.matrix(rows, inner);
          const w = random.matrix(cols, inner, 1, dtype);
          const b = random.matrix(1, cols, 1, dtype);
          const out = poisoned(device, 'f32', [rows, cols]);
          operations.linear(
            toTensor(device, 'f32', x),
            toTensor(device, dtype, w),
            biased ? toTensor(device, dtype, b).reshape([cols]) : undefined,
            out,
          );
          await operations.settle();
          const wanted = Array.from({ length: rows }, (_, i) =>
            apply(w, row(x, i)).map((y, j) => y + (biased ? (b.data[j] as number) : 0)),
          );
          expect(
            relativeError(
              await out.read(),
              wanted.flatMap((values) => [...values]),
            ),
          ).toBeLessThan(1e-5);
        },
      ),
      { numRuns: 60 },
    );
  });

  test('rmsNorm over whole rows and over heads, in place too', async () => {
    const random = new Random(3);
    const x = random.matrix(9, 24);
    for (const size of [24, 8]) {
      const w = random.matrix(1, size, 1, 'bf16');
      const wanted = x.data.map((value, index) => {
        const group = x.data.subarray(
          Math.floor(index / size) * size,
          Math.floor(index / size) * size + size,
        );
        return (
          (value * (w.data[index % size] as number)) /
          Math.sqrt(group.reduce((sum, e) => sum + e * e, 0) / size + 1e-6)
        );
      });
      const tensor = toTensor(device, 'f32', x);
      operations.rmsNorm(tensor, toTensor(device, 'bf16', w).reshape([size]), 1e-6, tensor);
      await operations.settle();
      expect(relativeError(await tensor.read(), wanted)).toBeLessThan(1e-6);
    }
  });

  test.each([false, true])(
    'rotary turns each pair by its angle and leaves the rest (neighbours: %s)',
    async (neighbours) => {
      const random = new Random(4);
      const [tokens, heads, headSize, offset, pairs] = [7, 3, 10, 2, 3];
      const x = random.matrix(tokens, heads * headSize);
      const frequencies = Float32Array.of(1, 0.1, 0.013);
      const positions = Int32Array.of(0, 1, 5, 100, 3, 2000, 77);
      const wanted = Float64Array.from(x.data);
      for (let t = 0; t < tokens; t++) {
        for (let h = 0; h < heads; h++) {
          for (let j = 0; j < pairs; j++) {
            const at = t * heads * headSize + h * headSize + offset;
            const [i0, i1] = neighbours ? [at + 2 * j, at + 2 * j + 1] : [at + j, at + j + pairs];
            const angle = Math.fround((positions[t] as number) * (frequencies[j] as number));
            const [a, b] = [x.data[i0] as number, x.data[i1] as number];
            wanted[i0] = 2 * (a * Math.cos(angle) - b * Math.sin(angle));
            wanted[i1] = 2 * (b * Math.cos(angle) + a * Math.sin(angle));
          }
        }
      }
      const tensor = toTensor(device, 'f32', x);
      operations.rotary(tensor, device.tensor('i32', positions), device.tensor('f32', frequencies), {
        heads,
        headSize,
        offset,
        neighbours,
        magnitude: 2,
      });
      await operations.settle();
      expect(relativeError(await tensor.read(), wanted)).toBeLessThan(1e-6);
    },
  );

  test('cross entropy and the divergence of distributions', async () => {
    const random = new Random(5);
    const [p, q] = [random.matrix(20, 50, 4), random.matrix(20, 50, 4)];
    const targets = Int32Array.from({ length: 20 }, () => random.integer(50));
    const logSoftmax = (values: Float64Array) => {
      const largest = Math.max(...values);
      const sum = values.reduce((s, v) => s + Math.exp(v - largest), 0);
      return values.map((v) => v - largest - Math.log(sum));
    };
    const losses = poisoned(device, 'f64', [20]);
    const divergences = poisoned(device, 'f64', [20]);
    const agreements = device.empty('i32', [20]);
    const [pt, qt] = [toTensor(device, 'f32', p), toTensor(device, 'f32', q)];
    await device.native.crossEntropy(pt.native, device.tensor('i32', targets).native, losses.native);
    await device.native.compareDistributions(pt.native, qt.native, divergences.native, agreements.native);
    const [ours, kl, agree] = [await losses.read(), await divergences.read(), await agreements.read()];
    for (let t = 0; t < 20; t++) {
      const [a, b] = [logSoftmax(row(p, t)), logSoftmax(row(q, t))];
      expect(ours[t]).toBeCloseTo(-(a[targets[t] as number] as number), 12);
      expect(kl[t]).toBeCloseTo(
        a.reduce((sum, v, i) => sum + Math.exp(v) * (v - (b[i] as number)), 0),
        12,
      );
      expect(agree[t]).toBe(a.indexOf(Math.max(...a)) === b.indexOf(Math.max(...b)) ? 1 : 0);
    }
  });
});

describe('bad input', () => {
  const f = (...shape: number[]) => device.empty('f32', shape);
  const failing = async (call: () => void) => {
    call();
    await operations.settle();
    await device.synchronize(); // a GPU tells what its kernels found when it is waited for
  };
  test('a token id outside of the vocabulary is INVALID_ARGUMENT with its place', async () => {
    const call = failing(() =>
      operations.gatherRows(f(10, 4), device.tensor('i32', Int32Array.of(1, 10)), f(2, 4)),
    );
    await expect(call).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining('Token id 10 at 1'),
    });
  });
  test('NaN logits are NON_FINITE with the row', async () => {
    const logits = device.tensor('f32', Float32Array.of(1, 2, Number.NaN, 1), [2, 2]);
    const call = failing(() => {
      operations.add(() =>
        device.native.crossEntropy(
          logits.native,
          device.tensor('i32', new Int32Array(2)).native,
          device.empty('f64', [2]).native,
        ),
      );
    });
    await expect(call).rejects.toMatchObject({
      code: 'NON_FINITE',
      message: expect.stringContaining('row 1'),
    });
  });
  test('shapes, sequences and heads that do not fit are refused', async () => {
    const spec = { heads: 2, kvHeads: 1, headSize: 4, valueSize: 4, scale: 1, window: 0 };
    const attend = (sequences: NativeSequence[], change = {}) =>
      failing(() =>
        operations.attention(f(3, 8), f(5, 4), f(5, 4), sequences, { ...spec, ...change }, f(3, 8)),
      );
    await expect(attend([[0, 3, 0, 6]])).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(attend([[0, 2, 0, 5]])).rejects.toThrow(/cover 2 of 3/);
    await expect(attend([[0, 3, 3, 5]])).rejects.toThrow(/more queries than keys/);
    await expect(attend([[0, 3, 0, 5]], { kvHeads: 3 })).rejects.toThrow(/evenly/);
    for (const scale of [-1, 0, Number.NaN])
      await expect(attend([[0, 3, 0, 5]], { scale })).rejects.toThrow(/positive number for scale/);
    for (const eps of [-1e-6, Number.NaN])
      await expect(failing(() => operations.rmsNorm(f(2, 6), f(3), eps, f(2, 6)))).rejects.toThrow(
        /non-negative number for eps/,
      );
    const rotate = (offset: number) =>
      failing(() =>
        operations.rotary(f(2, 8), device.tensor('i32', new Int32Array(2)), f(3), {
          heads: 1,
          headSize: 8,
          offset,
          neighbours: false,
          magnitude: 1,
        }),
      );
    await expect(rotate(4)).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining('6 rotated elements from 4 on do not fit a head of 8'),
    });
    await expect(
      failing(() => operations.linear(f(2, 3), f(4, 5), undefined, f(2, 4))),
    ).rejects.toMatchObject({ code: 'SHAPE_MISMATCH' });
    await expect(failing(() => operations.rmsNorm(f(2, 6), f(4), 1e-6, f(2, 6)))).rejects.toMatchObject({
      code: 'SHAPE_MISMATCH',
    });
  });
});
