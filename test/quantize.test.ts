import fc from 'fast-check';
import { afterAll, describe, expect, test } from 'vitest';
import { openDevice } from '../lib/device.ts';
import type { BlockDType } from '../lib/dtype.ts';
import { DenseExperts, LatentExperts, type LatentOperator } from '../lib/experts.ts';
import { factorizeExperts } from '../lib/factorization/factorize.ts';
import { quantizeExperts } from '../lib/quantize.ts';
import { Tensor } from '../lib/tensor.ts';
import { encode, fromF16Bits, Random, toF16Bits } from './support/random.ts';
import { relativeError } from './support/reference.ts';

const device = await openDevice('cpu');
afterAll(() => device.dispose());

const BLOCKS: readonly BlockDType[] = ['q8', 'q4'];

/** By the definition of q8_0 and q4_0, in f64 but for the division, which decides where halves go. */
function roundedBlock(block: readonly number[], dtype: BlockDType): number[] {
  const extreme = block.reduce((a, b) => (Math.abs(b) > Math.abs(a) ? b : a), 0);
  const scale = Math.fround(dtype === 'q8' ? Math.abs(extreme) / 127 : extreme / -8);
  const stored = fromF16Bits(toF16Bits(scale));
  if (stored === 0) return block.map(() => 0);
  return block.map((value) => {
    const exact = Math.fround(value / scale);
    const away = Math.sign(exact) * Math.floor(Math.abs(exact) + 0.5);
    const q = dtype === 'q8' ? away : Math.max(-8, Math.min(7, Math.floor(exact + 0.5)));
    return q * stored;
  });
}

/** The values of blocks, from their bytes: an f16 scale, then integers. */
function valuesOf(bytes: Uint8Array, dtype: BlockDType, rows: number, cols: number): number[] {
  const blockBytes = dtype === 'q8' ? 34 : 18;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const blocks = Math.ceil(cols / 32);
  return Array.from({ length: rows * cols }, (_, at) => {
    const [row, col] = [Math.floor(at / cols), at % cols];
    const begin = (row * blocks + Math.floor(col / 32)) * blockBytes;
    const i = col % 32;
    const scale = fromF16Bits(view.getUint16(begin, true));
    if (dtype === 'q8') return scale * view.getInt8(begin + 2 + i);
    const pair = view.getUint8(begin + 2 + (i % 16));
    return scale * ((i < 16 ? pair & 15 : pair >> 4) - 8);
  });
}

async function toBlocks(values: ArrayLike<number>, cols: number, dtype: BlockDType): Promise<Tensor> {
  using exact = device.tensor('f32', Float32Array.from(values), [values.length / cols, cols]);
  return exact.to(dtype);
}

describe('rounding to blocks', () => {
  test.each(BLOCKS)(
    '%s: as the definition, whatever the values, in blocks that end with the row',
    async (dtype) => {
      await fc.assert(
        fc.asyncProperty(
          fc.integer({ min: 1, max: 75 }),
          fc.integer({ min: 1, max: 4 }),
          fc.integer(),
          fc.constantFrom(1e-9, 1e-6, 1e-2, 1, 1e3),
          async (cols, rows, seed, size) => {
            const values = Float32Array.from(new Random(seed).matrix(rows, cols, size).data);
            const wanted: number[] = [];
            for (let row = 0; row < rows; row++) {
              for (let begin = 0; begin < cols; begin += 32) {
                const end = Math.min(cols, begin + 32);
                wanted.push(
                  ...roundedBlock([...values.subarray(row * cols + begin, row * cols + end)], dtype),
                );
              }
            }
            using blocks = await toBlocks(values, cols, dtype);
            expect(relativeError(await blocks.toFloat32(), wanted)).toBeLessThan(1e-6);
            const bytes = (await blocks.read()) as Uint8Array;
            expect(bytes.length).toBe(blocks.byteLength);
            expect(relativeError(valuesOf(bytes, dtype, rows, cols), wanted)).toBeLessThan(1e-6);
            using again = device.tensor(dtype, bytes, [rows, cols]);
            expect(await again.read()).toEqual(bytes);
          },
        ),
        { numRuns: 60 },
      );
    },
  );

  test.each<[BlockDType, number, number]>([
    ['q8', -127, 127],
    ['q4', -8, 7],
  ])('%s: values that blocks can hold stay as they are', async (dtype, least, most) => {
    const random = new Random(5);
    const values = Float32Array.from({ length: 640 }, (_, i) => {
      // The value of largest magnitude makes the scale.
      const q = i % 32 === 3 ? least : least + random.integer(most - least + 1);
      return q * fromF16Bits(toF16Bits(0.013 * (1 + Math.floor(i / 32))));
    });
    using blocks = await toBlocks(values, 320, dtype);
    expect(relativeError(await blocks.toFloat32(), values)).toBeLessThan(dtype === 'q4' ? 1e-12 : 1e-6);
  });

  test('zeros stay zeros, and so does what an f16 scale cannot tell from them', async () => {
    for (const dtype of BLOCKS) {
      using blocks = await toBlocks([0, 1e-38, -1e-40, 0], 4, dtype);
      expect((await blocks.toFloat32()).every((value) => value === 0)).toBe(true);
    }
  });

  test('NaN, values beyond f16 scales, ids and tensors without rows are refused', async () => {
    for (const dtype of BLOCKS) {
      await expect(toBlocks([1, 2, 3, Number.NaN], 2, dtype)).rejects.toThrow(/\[1, 1\]/);
      await expect(toBlocks([1e30], 1, dtype)).rejects.toThrow(/beyond f16/);
      using ids = device.tensor('i32', Int32Array.of(1, 2), [1, 2]);
      await expect(ids.to(dtype)).rejects.toMatchObject({ code: 'DTYPE_MISMATCH' });
      expect(() => device.empty(dtype, [64])).toThrow(/need rows/);
      expect(() => device.tensor(dtype, new Uint8Array(10), [1, 32])).toThrow(
        /bytes of blocks .* received 10/,
      );
    }
  });

  test('what works on floats refuses blocks by name', async () => {
    using blocks = await toBlocks(new Float32Array(64), 32, 'q8');
    const { gemm, transpose, svd } = await import('../lib/linalg.ts');
    await expect(gemm(blocks, blocks)).rejects.toMatchObject({ code: 'DTYPE_MISMATCH', message: /q8/ });
    await expect(transpose(blocks)).rejects.toMatchObject({ code: 'DTYPE_MISMATCH', message: /q8/ });
    await expect(svd(blocks)).rejects.toMatchObject({ code: 'DTYPE_MISMATCH', message: /q8/ });
  });
});

const [n, m, numExperts, topK] = [80, 45, 6, 2] as const;

function makeExperts(random: Random, on = device): DenseExperts {
  const stack = (rows: number, cols: number) =>
    on.tensor('f32', encode('f32', random.matrix(numExperts * rows, cols, 0.2).data), [
      numExperts,
      rows,
      cols,
    ]);
  const [gate, up, down] = [stack(m, n), stack(m, n), stack(n, m)];
  return new DenseExperts({ gate, up, down, owned: [gate, up, down] });
}

/** The layer with the values that its blocks are read back as, in f32. */
async function readBack(layer: DenseExperts | LatentExperts): Promise<DenseExperts | LatentExperts> {
  const wide = (tensors: readonly Tensor[]) => Promise.all(tensors.map((tensor) => tensor.to('f32')));
  if (layer instanceof DenseExperts) {
    return new DenseExperts({
      gate: await wide(layer.gate),
      up: await wide(layer.up),
      down: await wide(layer.down),
    });
  }
  const latent = async ({ a, b }: LatentOperator) => ({ a: await wide(a), b: await wide(b) });
  return new LatentExperts({
    groups: layer.groups,
    gate: await latent(layer.gate as LatentOperator),
    up: await latent(layer.up as LatentOperator),
    down: await latent(layer.down as LatentOperator),
  });
}

describe('experts in blocks', () => {
  test.each(BLOCKS)(
    '%s: dense and latent layers run as with the values of their blocks, whatever the batch',
    async (dtype) => {
      const random = new Random(11);
      using dense = makeExperts(random);
      using latent = await factorizeExperts(dense, { groupSize: 3, latentSize: 37 });
      for (const exact of [dense, latent]) {
        using layer = await quantizeExperts(exact, dtype);
        using wanted = await readBack(layer);
        for (const tokens of [1, 3, 16, 60, 200]) {
          using x = device.tensor('f32', encode('f32', random.matrix(tokens, n).data), [tokens, n]);
          const { ids, weights } = random.routing(tokens, numExperts, topK);
          using idTensor = device.tensor('i32', ids, [tokens, topK]);
          using weightTensor = device.tensor('f32', weights, [tokens, topK]);
          const routing = { ids: idTensor, weights: weightTensor };
          using y = await layer.forward(x, routing);
          using reference = await wanted.forward(x, routing);
          expect(relativeError(await y.toFloat32(), await reference.toFloat32())).toBeLessThan(2e-6);
          using unrounded = await exact.forward(x, routing);
          const lost = relativeError(await y.toFloat32(), await unrounded.toFloat32());
          expect(lost).toBeGreaterThan(1e-4);
          expect(lost).toBeLessThan(dtype === 'q8' ? 0.02 : 0.25);
        }
      }
    },
  );

  test('a basis that gate and up share is rounded once and stays shared; the original can go', async () => {
    const dense = makeExperts(new Random(12));
    const exact = await factorizeExperts(dense, { groupSize: 3, latentSize: 32, sharedGateUp: true });
    using layer = await quantizeExperts(exact, 'q8');
    expect((layer.gate as LatentOperator).b[0]).toBe((layer.up as LatentOperator).b[0]);
    exact.dispose();
    dense.dispose();
    using x = device.tensor('f32', new Float32Array(n).fill(1), [1, n]);
    using ids = device.tensor('i32', Int32Array.of(0, 5), [1, topK]);
    using weights = device.tensor('f32', Float32Array.of(0.5, 0.5), [1, topK]);
    using y = await layer.forward(x, { ids, weights });
    expect((await y.toFloat32()).every(Number.isFinite)).toBe(true);
  });

  test('what blocks cannot hold is told by factor and group', async () => {
    using dense = makeExperts(new Random(14));
    using exact = await factorizeExperts(dense, { groupSize: 3, latentSize: 32 });
    const { groups, up, down } = exact;
    const { a, b } = exact.gate as LatentOperator;
    const broken = async (value: number, code: string, message: RegExp) => {
      using tensor = device.tensor('f32', new Float32Array(32 * n).fill(value), [32, n]);
      using layer = new LatentExperts({ groups, gate: { a, b: [b[0] as Tensor, tensor] }, up, down });
      await expect(quantizeExperts(layer, 'q8')).rejects.toMatchObject({
        code,
        message: expect.stringMatching(message),
      });
    };
    await broken(Number.NaN, 'NON_FINITE', /^gate\.b\[1\]: NaN or infinity at \[0, 0\]/);
    await broken(1e30, 'INVALID_ARGUMENT', /^gate\.b\[1\]: Weights need a scale of .*, beyond f16/);
  });

  test('bad input and failures on the way leave nothing behind', async () => {
    using own = await openDevice('cpu', { threads: 3 });
    using dense = makeExperts(new Random(13), own);
    await expect(quantizeExperts(dense, 'bf16' as BlockDType)).rejects.toThrow(/q8 or q4 for dtype/);
    await expect(quantizeExperts({} as DenseExperts, 'q8')).rejects.toThrow(/DenseExperts or LatentExperts/);
    const down = dense.down.map((tensor) => tensor);
    using broken = own.tensor('f32', new Float32Array(n * m).fill(Number.NaN), [n, m]);
    down[5] = broken;
    using layer = new DenseExperts({ gate: dense.gate, up: dense.up, down });
    const { tensors } = own.memoryUsage();
    await expect(quantizeExperts(layer, 'q4')).rejects.toMatchObject({
      code: 'NON_FINITE',
      message: 'The down matrix of expert 5 has NaN or infinity at [0, 0]',
    });
    expect(own.memoryUsage().tensors).toBe(tensors);
    expect(Tensor.is(layer.gate[0])).toBe(true);
    await expect(
      factorizeExperts(await quantizeExperts(dense, 'q8'), { groupSize: 3, latentSize: 8 }),
    ).rejects.toThrow(/floating dtype .* received q8/);
  });
});
