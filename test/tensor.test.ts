import fc from 'fast-check';
import { afterAll, describe, expect, test } from 'vitest';
import { openDevice } from '../lib/device.ts';
import { gemm } from '../lib/linalg.ts';
import { openOwnDevice, openTestDevice } from './support/device.ts';
import { encode, fromBf16Bits, fromF16Bits, toBf16Bits, toF16Bits } from './support/random.ts';

const device = await openTestDevice();
afterAll(() => device.dispose());

describe('conversions', () => {
  test('every bf16 and f16 bit pattern widens to its value', async () => {
    const bits = Uint16Array.from({ length: 65536 }, (_, i) => i);
    for (const [dtype, value] of [
      ['bf16', fromBf16Bits],
      ['f16', fromF16Bits],
    ] as const) {
      for (const wide of ['f32', 'f64'] as const) {
        const out = await (await device.tensor(dtype, bits).to(wide)).read();
        for (let i = 0; i < 65536; i++) {
          if (!Object.is(out[i], value(i)) && !(Number.isNaN(out[i]) && Number.isNaN(value(i))))
            throw new Error(`${dtype} ${i.toString(16)}: ${out[i]}`);
        }
      }
    }
  });

  test('f32 rounds to the nearest half, ties to even, overflow to infinity', async () => {
    const special = [
      0,
      -0,
      1,
      -1,
      65504,
      65519.99,
      65520,
      1e30,
      -1e30,
      2 ** -24,
      2 ** -25,
      1.5 * 2 ** -25,
      2 ** -14,
      2 ** -15,
      Math.PI,
      1 + 2 ** -8,
      1 + 3 * 2 ** -9,
      1 + 2 ** -11,
      1 + 3 * 2 ** -12,
      3.4e38,
    ];
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.float({ noNaN: true, noDefaultInfinity: true }), { maxLength: 200 }),
        async (values) => {
          const source = Float32Array.from([...special, ...values]);
          const bf16 = await (await device.tensor('f32', source).to('bf16')).read();
          const f16 = await (await device.tensor('f32', source).to('f16')).read();
          source.forEach((value, i) => {
            expect([value, bf16[i]]).toEqual([value, toBf16Bits(value)]);
            expect([value, f16[i]]).toEqual([value, toF16Bits(value)]);
          });
        },
      ),
      { numRuns: 100 },
    );
  });

  test('NaN stays NaN, in every direction', async () => {
    for (const from of ['f32', 'f64'] as const) {
      for (const to of ['f32', 'f64', 'bf16', 'f16'] as const) {
        const tensor = await device.tensor(from, encode(from, [Number.NaN, 1])).to(to);
        const [nan, one] = await tensor.toFloat32();
        expect([nan, one]).toEqual([Number.NaN, 1]);
      }
    }
  });
});

describe('data in and out', () => {
  test('a tensor owns a copy: changing the array afterwards changes nothing', async () => {
    const data = Float32Array.of(1, 2, 3);
    const tensor = device.tensor('f32', data);
    data.fill(9);
    expect([...(await tensor.read())]).toEqual([1, 2, 3]);
  });

  test('write takes its copy before it returns, and happens after what was queued before', async () => {
    const tensor = device.tensor('f32', Float32Array.of(1, 2));
    const source = Float32Array.of(3, 4);
    const before = tensor.read();
    const written = tensor.write(source);
    source.fill(0);
    const after = tensor.read();
    await written;
    expect([[...(await before)], [...(await after)]]).toEqual([
      [1, 2],
      [3, 4],
    ]);
  });

  test('read fills the array it is given, also a view with an offset', async () => {
    const tensor = device.tensor('f64', Float64Array.of(5, 6));
    const backing = new Float64Array(4);
    const target = backing.subarray(1, 3);
    expect(await tensor.read(target)).toBe(target);
    expect([...backing]).toEqual([0, 5, 6, 0]);
    expect([...tensor.readSync()]).toEqual([5, 6]);
  });

  test('a target detached while the read is under way is a typed error, not a crash', async () => {
    const tensor = device.tensor('f32', new Float32Array(1 << 16));
    const target = new Float32Array(1 << 16);
    const reading = tensor.read(target);
    structuredClone(target.buffer, { transfer: [target.buffer] });
    await expect(reading).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });

  test('Float16Array is taken for f16 where the runtime has it', async () => {
    const Float16 = (globalThis as { Float16Array?: new (values: number[]) => Uint16Array }).Float16Array;
    if (!Float16) return expect(process.versions.node.split('.')[0]).toBe('20');
    expect([...(await device.tensor('f16', new Float16([1.5, -2])).toFloat32())]).toEqual([1.5, -2]);
  });

  test('SharedArrayBuffer memory is copied like any other', async () => {
    const shared = new Float32Array(new SharedArrayBuffer(8));
    shared.set([7, 8]);
    const tensor = device.tensor('f32', shared);
    shared.fill(0);
    expect([...(await tensor.read())]).toEqual([7, 8]);
  });
});

describe('views', () => {
  const tensor = device.tensor(
    'f32',
    Float32Array.from({ length: 24 }, (_, i) => i),
    [2, 3, 4],
  );

  test('slice, rows and reshape share memory and keep it alive', async () => {
    expect([...(await tensor.slice(1).read())]).toEqual(Array.from({ length: 12 }, (_, i) => i + 12));
    expect((await tensor.slice(1).rows(1, 3).read()).at(0)).toBe(16);
    expect(tensor.reshape([4, 6]).shape).toEqual([4, 6]);
    const parent = device.tensor('f32', Float32Array.of(1, 2, 3, 4), [2, 2]);
    const view = parent.slice(1);
    parent.dispose();
    expect([...(await view.read())]).toEqual([3, 4]);
    await view.write(Float32Array.of(5, 6));
    expect([...view.readSync()]).toEqual([5, 6]);
  });

  test.each<[string, () => unknown]>([
    ['an index past the end', () => tensor.slice(2)],
    ['a negative index', () => tensor.slice(-1)],
    ['a fractional index', () => tensor.slice(0.5)],
    ['rows past the end', () => tensor.rows(1, 3)],
    ['rows that end before they begin', () => tensor.rows(2, 1)],
  ])('%s is refused', (_, call) => {
    expect(call).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  });

  test('a reshape to another number of elements is refused', () => {
    expect(() => tensor.reshape([5, 5])).toThrow(expect.objectContaining({ code: 'SHAPE_MISMATCH' }));
  });
});

describe('lifetimes', () => {
  test('use after dispose is DISPOSED, a second dispose does nothing', async () => {
    const tensor = device.tensor('f32', Float32Array.of(1));
    tensor.dispose();
    tensor.dispose();
    expect(tensor.disposed).toBe(true);
    await expect(tensor.read()).rejects.toMatchObject({ code: 'DISPOSED' });
    expect(() => tensor.readSync()).toThrow(/\[1\] was disposed/);
  });

  test('work in flight keeps what it uses', async () => {
    const a = device.tensor('f32', new Float32Array(512 * 512).fill(1), [512, 512]);
    const product = gemm(a, a);
    a.dispose();
    expect((await (await product).read()).every((v) => v === 512)).toBe(true);
  });

  test('memory goes back at dispose, and is counted while it lasts', async () => {
    using own = await openOwnDevice();
    const before = own.memoryUsage().tensors;
    const tensor = own.empty('f32', [1000, 1000]);
    expect(own.memoryUsage().tensors - before).toBe(4_000_000);
    tensor.dispose();
    await own.synchronize();
    expect(own.memoryUsage().tensors).toBe(before);
  });

  test('a disposed device refuses new work; its tensors stay readable and writable, and work in flight finishes', async () => {
    const other = await openDevice('cpu');
    const tensor = other.tensor('f32', Float32Array.of(4), [1, 1]);
    const product = gemm(tensor, tensor);
    other.dispose();
    const disposed = expect.objectContaining({ code: 'DISPOSED' });
    expect(() => other.empty('f32', [1])).toThrow(disposed);
    await expect(gemm(tensor, tensor)).rejects.toEqual(disposed);
    await expect(tensor.to('f64')).rejects.toEqual(disposed);
    expect([...(await tensor.read())]).toEqual([4]);
    expect([...(await (await product).read())]).toEqual([16]);
    await tensor.write(Float32Array.of(5));
    expect([...tensor.readSync()]).toEqual([5]);
  });
});

test('two timestamps enclose the work queued between them, and no more than the time that passed', async () => {
  const a = device.tensor('f32', new Float32Array(600 * 600).fill(0.5), [600, 600]);
  const started = performance.now();
  const [before, , , after] = await Promise.all([
    device.timestamp(),
    gemm(a, a),
    gemm(a, a),
    device.timestamp(),
  ]);
  expect(after - before).toBeGreaterThan(0);
  expect(after - before).toBeLessThanOrEqual(performance.now() - started + 1);
});

describe('bad input', () => {
  test.each<[string, () => unknown, string, RegExp]>([
    [
      'a typed array of the wrong type',
      () => device.tensor('f32', new Float64Array(2) as never),
      'INVALID_ARGUMENT',
      /a Float32Array \(f32\) for data but received 16 bytes of type Float64Array/,
    ],
    [
      'too few elements',
      () => device.tensor('f32', new Float32Array(5), [2, 3]),
      'SHAPE_MISMATCH',
      /6 elements for data of shape \[2, 3\] but received 5/,
    ],
    [
      'an unknown dtype',
      () => device.empty('f8' as never, [1]),
      'INVALID_ARGUMENT',
      /one of f32, f64, f16, bf16, i32, q8, q4 for dtype but received "f8"/,
    ],
    [
      'a negative size',
      () => device.empty('f32', [-1]),
      'INVALID_ARGUMENT',
      /non-negative integers for shape/,
    ],
    ['a size beyond 2^53', () => device.empty('f32', [2 ** 60]), 'INVALID_ARGUMENT', /shape/],
    [
      'sizes whose product overflows',
      () => device.empty('f32', [2 ** 40, 2 ** 40]),
      'INVALID_ARGUMENT',
      /overflow/,
    ],
    ['more memory than there is', () => device.empty('f32', [2 ** 50]), 'OUT_OF_MEMORY', /bytes/],
    [
      'more than 8 dimensions',
      () => device.empty('f32', Array(9).fill(1)),
      'INVALID_ARGUMENT',
      /8 dimensions/,
    ],
  ])('%s', (_, call, code, message) => {
    expect(call).toThrow(expect.objectContaining({ code, message: expect.stringMatching(message) }));
  });

  test('device names are checked, cuda never falls back', async () => {
    await expect(openDevice('gpu')).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining('auto, cpu, cuda'),
    });
    await expect(openDevice('cpu:1')).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(openDevice('cpu', { threads: -1 })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });

  test('threads are counted from 0 on, and 0 means all of them', async () => {
    using all = await openDevice('cpu', { threads: 0 });
    using byDefault = await openDevice('cpu');
    expect(all.info.threads).toBe(byDefault.info.threads);
    for (const threads of [-1, 1.5]) {
      await expect(openDevice('cpu', { threads })).rejects.toThrow(
        `Expected a non-negative integer (0: every processor) for threads but received ${threads}`,
      );
    }
  });

  test('errors have a JavaScript stack that leads to the call', async () => {
    async function here() {
      await gemm(device.empty('f32', [1, 2]), device.empty('f32', [1, 2]));
    }
    await expect(here()).rejects.toMatchObject({ stack: expect.stringContaining('here') });
  });
});
