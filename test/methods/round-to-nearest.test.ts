import fc from 'fast-check';
import { afterAll, describe, expect, test } from 'vitest';
import type { DenseExperts } from '../../lib/experts.ts';
import { roundTo4Bits, roundTo8Bits } from '../../lib/methods/round-to-nearest.ts';
import { native } from '../../lib/native.ts';
import { openTestDevice } from '../support/device.ts';
import { fromF16Bits, Random, toF16Bits } from '../support/random.ts';
import { relativeError } from '../support/reference.ts';
import { elementsOf, makeLayer, prepare } from './support.ts';

const device = await openTestDevice();
afterAll(() => device.dispose());

/** By the definition of q8_0 and q4_0, in f64 but for the division, which decides where halves go. */
function roundedBlock(block: readonly number[], bits: 8 | 4): number[] {
  const extreme = block.reduce((a, b) => (Math.abs(b) > Math.abs(a) ? b : a), 0);
  const scale = Math.fround(bits === 8 ? Math.abs(extreme) / 127 : extreme / -8);
  const stored = fromF16Bits(toF16Bits(scale));
  if (stored === 0) return block.map(() => 0);
  return block.map((value) => {
    const exact = Math.fround(value / scale);
    const away = Math.sign(exact) * Math.floor(Math.abs(exact) + 0.5);
    const q = bits === 8 ? away : Math.max(-8, Math.min(7, Math.floor(exact + 0.5)));
    return q * stored;
  });
}

describe('rounding to blocks', () => {
  test.each<8 | 4>([8, 4])(
    '%i bits: as the definition, whatever the values, in blocks that end with the row',
    (bits) => {
      fc.assert(
        fc.property(
          fc.integer({ min: 1, max: 75 }),
          fc.integer({ min: 1, max: 4 }),
          fc.integer(),
          fc.constantFrom(1e-9, 1e-6, 1e-2, 1, 1e3),
          (cols, rows, seed, size) => {
            const values = Float32Array.from(new Random(seed).matrix(rows, cols, size).data);
            const wanted: number[] = [];
            for (let row = 0; row < rows; row++) {
              for (let begin = 0; begin < cols; begin += 32) {
                const end = Math.min(cols, begin + 32);
                wanted.push(
                  ...roundedBlock([...values.subarray(row * cols + begin, row * cols + end)], bits),
                );
              }
            }
            native().roundBlocks(values, cols, bits);
            expect(relativeError(values, wanted)).toBeLessThan(1e-6);
          },
        ),
        { numRuns: 60 },
      );
    },
  );

  test.each<[8 | 4, number, number]>([
    [8, -127, 127],
    [4, -8, 7],
  ])('%i bits: values that blocks can hold stay as they are', (bits, least, most) => {
    const random = new Random(5);
    const values = Float32Array.from({ length: 640 }, (_, i) => {
      // The value of largest magnitude makes the scale.
      const q = i % 32 === 3 ? least : least + random.integer(most - least + 1);
      return q * fromF16Bits(toF16Bits(0.013 * (1 + Math.floor(i / 32))));
    });
    const rounded = values.slice();
    native().roundBlocks(rounded, 320, bits);
    expect(relativeError(rounded, values)).toBeLessThan(bits === 4 ? 1e-12 : 1e-6);
  });

  test('zeros stay zeros, and so does what an f16 scale cannot tell from them', () => {
    const values = Float32Array.from([0, 1e-38, -1e-40, 0]);
    for (const bits of [8, 4] as const) {
      native().roundBlocks(values, 4, bits);
      expect(values.every((value) => value === 0)).toBe(true);
    }
  });

  test('NaN, values beyond f16 scales and rows that do not fit are refused, with the position', () => {
    const round = (values: number[], cols: number) =>
      native().roundBlocks(Float32Array.from(values), cols, 4);
    expect(() => round([1, 2, 3, Number.NaN], 2)).toThrow(/\[1, 1\]/);
    expect(() => round([1e30], 1)).toThrow(/beyond f16/);
    expect(() => round([1, 2, 3], 2)).toThrow(/rows of 2 .* received 3/);
    expect(() => native().roundBlocks(new Float32Array(2), 2, 5 as 4)).toThrow(/8 or 4 bits/);
  });
});

test.each([
  { method: roundTo8Bits, bytes: 34, error: 0.01 },
  { method: roundTo4Bits, bytes: 18, error: 0.12 },
])(
  '$method.name: all experts near the originals, in $bytes bytes a block',
  async ({ method, bytes, error }) => {
    const layer = await makeLayer(device, 1, { n: 40, m: 64 });
    const { block, expertBytes, expertParameters, dispose } = await (
      await prepare(method, layer, 0.5)
    ).compress(layer.layer);
    const original = await elementsOf(layer.layer.block.experts as DenseExperts);
    const reached = relativeError(await elementsOf(block.experts as DenseExperts), original);
    expect(reached).toBeLessThan(error);
    expect(reached).toBeGreaterThan(error / 10);
    expect(expertParameters).toBe(original.length);
    // Rows of 40 take two blocks, rows of 64 too.
    expect(expertBytes).toBe(6 * (64 + 64 + 40) * 2 * bytes);
    dispose();
  },
);
