import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { describe, expect, test } from 'vitest';
import type { Device } from '../lib/device.ts';
import type { DType } from '../lib/dtype.ts';
import { DenseExperts, LatentExperts } from '../lib/experts.ts';
import { batchedGemm, type GemmOptions, gemm, svd } from '../lib/linalg.ts';
import { MoeBlock } from '../lib/moe-block.ts';
import { type RouterSpec, type Routing, route } from '../lib/routing.ts';
import type { Tensor } from '../lib/tensor.ts';
import { deadline } from './support/deadline.ts';
import { openOwnDevice } from './support/device.ts';

/** Hides what a value is from the compiler. */
const any = <T>(value: unknown) => value as T;

function codeOf(call: () => unknown): Promise<string> {
  return (async () => call())().then(
    () => 'nothing',
    (error) => error.code ?? String(error),
  );
}

describe('hostile arguments', () => {
  test('2,000 calls of every kind end with a result or a typed error, and leave nothing', {
    timeout: deadline(300),
  }, async () => {
    const script = fileURLToPath(new URL('endurance/fuzz-api.mjs', import.meta.url));
    const { stdout } = await promisify(execFile)(process.execPath, [
      script,
      '--calls',
      '2000',
      '--seed',
      '11',
    ]);
    const report = JSON.parse(stdout);
    expect(report.finding).toBeUndefined();
    expect(report.succeeded).toBeGreaterThan(400);
    expect(Object.keys(report.refused)).toEqual(
      expect.arrayContaining([
        'INVALID_ARGUMENT',
        'SHAPE_MISMATCH',
        'DEVICE_MISMATCH',
        'DISPOSED',
        'ABORTED',
      ]),
    );
  });
});

// What the fuzzer found, one by one.
describe('findings', () => {
  const withDevice = async (body: (device: Device) => Promise<void>) => {
    const device = await openOwnDevice();
    const before = device.memoryUsage().tensors;
    await body(device);
    expect(device.memoryUsage().tensors).toBe(before);
    device.dispose();
  };
  const matrix = (device: Device, rows: number, cols: number) =>
    device.tensor('f32', new Float32Array(rows * cols).fill(0.5), [rows, cols]);

  test('a call that fails gives the tensors back that it made for its results', () =>
    withDevice(async (device) => {
      const spec: RouterSpec = { scoring: any('nothing known'), topK: 1, renormalize: true };
      using x = matrix(device, 2, 3);
      expect(await codeOf(() => route(x, spec))).toBe('INVALID_ARGUMENT');
      expect(await codeOf(() => gemm(x, x))).toBe('SHAPE_MISMATCH');
      using half = device.empty('bf16', [2, 2]);
      expect(await codeOf(() => svd(half))).toBe('DTYPE_MISMATCH');
    }));

  test('topK above the number of experts is refused before there are results of that size', () =>
    withDevice(async (device) => {
      const spec: RouterSpec = { scoring: 'softmax', topK: 2 ** 31, renormalize: true };
      using x = matrix(device, 2, 3);
      expect(await codeOf(() => route(x, spec))).toBe('INVALID_ARGUMENT');
      expect(device.memoryUsage().peak).toBeLessThan(2 ** 31);
    }));

  test('a layer that cannot be made gives the slices back that it was about to use', () =>
    withDevice(async (device) => {
      const stacked = device.empty('f32', [2, 3, 4]);
      expect(await codeOf(() => new DenseExperts({ gate: stacked, up: stacked, down: stacked }))).toBe(
        'SHAPE_MISMATCH',
      );
      stacked.dispose();
    }));

  test('a layer of stacked experts lets go of them when it is disposed', () =>
    withDevice(async (device) => {
      const [gate, down] = [device.empty('f32', [2, 3, 4]), device.empty('f32', [2, 4, 3])];
      new DenseExperts({ gate, up: gate, down }).dispose();
      gate.dispose();
      down.dispose();
    }));

  test('an expert index that would make a list of billions is refused at once', () =>
    withDevice(async (device) => {
      using a = device.empty('f32', [1, 3, 2]);
      using b = device.empty('f32', [2, 4]);
      const operator = { a: [a], b: [b] };
      const init = { groups: [[2 ** 32 - 2]], gate: operator, up: operator, down: operator };
      expect(await codeOf(() => new LatentExperts(init))).toBe('INVALID_ARGUMENT');
    }));

  test('batches and stacks of billions of empty matrices are refused at once', () =>
    withDevice(async (device) => {
      using empty = device.empty('f32', [2 ** 40, 0, 0]);
      expect(await codeOf(() => batchedGemm(empty, empty))).toBe('INVALID_ARGUMENT');
      expect(await codeOf(() => new DenseExperts({ gate: empty, up: empty, down: empty }))).toBe(
        'INVALID_ARGUMENT',
      );
    }));

  test('a shape that is a sparse array of billions is refused at once', () =>
    withDevice(async (device) => {
      expect(await codeOf(() => device.empty('f32', new Array(2 ** 32 - 1)))).toBe('INVALID_ARGUMENT');
    }));

  test('a shape that says something else when it is read again is read once', () =>
    withDevice(async (device) => {
      let reads = 0;
      const shape = new Proxy([2], {
        get: (sizes, key) => (key === '0' ? 2 + reads++ : Reflect.get(sizes, key)),
      });
      using tensor = device.empty('f32', shape);
      expect((await tensor.read()).length).toBe(tensor.length);
    }));

  test('null in the place of options, and values of the wrong type among them, are INVALID_ARGUMENT', () =>
    withDevice(async (device) => {
      using x = matrix(device, 2, 2);
      const spec: RouterSpec = { scoring: 'softmax', topK: 1, renormalize: true };
      const calls: (() => unknown)[] = [
        () => gemm(x, x, any<GemmOptions>(null)),
        () => gemm(x, x, { transposeA: any(1) }),
        () => gemm(x, x, { out: any<Tensor>({}) }),
        () => route(x, any(null)),
        () => route(x, spec, any(null)),
        () => route(x, { ...spec, groupLimit: any(null) }),
        () => route(x, { ...spec, scoring: any(Symbol('softmax')) }),
        () => new DenseExperts(any(null)),
        () => new MoeBlock({ router: x, spec, experts: any({}) }),
        () => x.reshape(any(4)),
        () => x.slice(any('0')),
      ];
      for (const call of calls) expect(await codeOf(call), String(call)).toBe('INVALID_ARGUMENT');
    }));

  test('a proxy of a tensor or a typed array is no tensor and no typed array', () =>
    withDevice(async (device) => {
      using x = matrix(device, 2, 2);
      expect(await codeOf(() => gemm(new Proxy(x, {}), x))).toBe('INVALID_ARGUMENT');
      expect(await codeOf(() => device.tensor('f32', new Proxy(new Float32Array(2), {})))).toBe(
        'INVALID_ARGUMENT',
      );
    }));

  test('a signal that is none is INVALID_ARGUMENT', () =>
    withDevice(async (device) => {
      using w = matrix(device, 2, 2);
      using layer = new DenseExperts({ gate: [w], up: [w], down: [w] });
      using ids = device.tensor('i32', Int32Array.of(0, 0), [2, 1]);
      using weights = device.tensor('f32', Float32Array.of(1, 1), [2, 1]);
      const routing: Routing = { ids, weights };
      expect(await codeOf(() => layer.forward(w, routing, { signal: any({ aborted: false }) }))).toBe(
        'INVALID_ARGUMENT',
      );
      expect(await codeOf(() => layer.forward(w, any(null)))).toBe('INVALID_ARGUMENT');
      expect(await codeOf(() => layer.forward(any<Tensor>(undefined), routing))).toBe('INVALID_ARGUMENT');
    }));

  test('messages show what was received, but never all of it, and never run its code twice', () =>
    withDevice(async (device) => {
      const cyclic: unknown[] = [];
      cyclic.push(cyclic);
      const throwing = Object.defineProperty({}, 'constructor', {
        get() {
          throw new Error('mine');
        },
      });
      for (const odd of ['x'.repeat(1e5), cyclic, throwing, Symbol('odd'), new Array(1e5).fill(1)]) {
        const error = await Promise.resolve()
          .then(() => device.empty(any<DType>(odd), [1]))
          .catch((reason) => reason);
        expect(error.code).toBe('INVALID_ARGUMENT');
        expect(error.message.length).toBeLessThan(300);
      }
      using x = matrix(device, 2, 2);
      const error = await Promise.resolve()
        .then(() => x.slice(any('x'.repeat(1e5))))
        .catch((reason) => reason);
      expect(error.message.length).toBeLessThan(300);
    }));
});
