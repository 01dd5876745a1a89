import { afterAll, describe, expect, test } from 'vitest';
import { openDevice } from '../lib/device.ts';
import { DenseExperts } from '../lib/experts.ts';
import type { Routing } from '../lib/routing.ts';
import type { Tensor } from '../lib/tensor.ts';
import { openTestDevice } from './support/device.ts';
import { Random, roundTo, toTensor } from './support/random.ts';
import { relativeError } from './support/reference.ts';

const device = await openTestDevice();
afterAll(() => device.dispose());
const packs = device.kind === 'cpu';

const [TOKENS, N, M, EXPERTS, TOP_K] = [40, 96, 80, 5, 2];

/** A layer that owns its weights, and a batch for it. */
function randomLayer(seed = 1, on = device) {
  const random = new Random(seed);
  const operator = (rows: number, cols: number) =>
    Array.from({ length: EXPERTS }, () =>
      toTensor(on, 'bf16', random.matrix(rows, cols, 1 / Math.sqrt(cols), 'bf16')),
    );
  const [gate, up, down] = [operator(M, N), operator(M, N), operator(N, M)];
  const { ids, weights } = random.routing(TOKENS, EXPERTS, TOP_K);
  const routing: Routing = {
    ids: on.tensor('i32', ids, [TOKENS, TOP_K]),
    weights: on.tensor('f32', weights, [TOKENS, TOP_K]),
  };
  const x = toTensor(on, 'f32', random.matrix(TOKENS, N, 1));
  return { layer: new DenseExperts({ gate, up, down, owned: [...gate, ...up, ...down] }), x, routing };
}

async function outputs(layer: DenseExperts, x: Tensor, routing: Routing): Promise<Float32Array> {
  using y = await layer.forward(x, routing);
  return (await y.read()) as Float32Array;
}

describe('pack', () => {
  test('results stay, to the rounding of sums, also when it is done twice', async () => {
    const { layer, x, routing } = randomLayer();
    using _ = layer;
    const before = await outputs(layer, x, routing);
    await layer.pack();
    const after = await outputs(layer, x, routing);
    expect(relativeError(after, before)).toBeLessThan(1e-6);
    await layer.pack();
    expect(await outputs(layer, x, routing)).toEqual(after);
  });

  test('forward needs none of the tensors that were given, and release gives their memory back', async () => {
    const own = await openDevice(device.kind);
    using _device = own;
    const { layer, x, routing } = randomLayer(2, own);
    using _ = layer;
    const before = await outputs(layer, x, routing);
    const tensors = own.memoryUsage().tensors;
    const weightBytes = 3 * EXPERTS * N * M * 2;
    await layer.pack();
    if (packs) expect(own.memoryUsage().tensors - tensors).toBeGreaterThanOrEqual(weightBytes);
    await layer.pack({ release: true });
    expect(() => layer.gate[0]?.readSync()).toThrow(expect.objectContaining({ code: 'DISPOSED' }));
    // Sizes of 16 columns, as these are, need no more than they had.
    expect(Math.abs(own.memoryUsage().tensors - tensors)).toBeLessThan(weightBytes / 10);
    expect(relativeError(await outputs(layer, x, routing), before)).toBeLessThan(1e-6);
  });

  test('the garbage collector is told of packed weights: layers that nobody has any more do not pile up', async () => {
    if (!packs) return;
    using own = await openDevice('cpu', { threads: 1 });
    const weights = () => Array.from({ length: 4 }, () => own.empty('f32', [512, 512]));
    let most = 0;
    for (let i = 0; i < 60; i++) {
      const [gate, up, down] = [weights(), weights(), weights()]; // 12 MB
      const layer = new DenseExperts({ gate, up, down, owned: [...gate, ...up, ...down] });
      await layer.pack({ release: true });
      most = Math.max(most, own.memoryUsage().tensors);
    }
    expect(most).toBeLessThan(360 * 2 ** 20);
  });

  test('packed results do not depend on the number of threads', async () => {
    const seen: Float32Array[] = [];
    for (const threads of [1, 2, 3]) {
      using own = await openDevice('cpu', { threads });
      const { layer, x, routing } = randomLayer(3, own);
      using _ = layer;
      await layer.pack({ release: true });
      seen.push(await outputs(layer, x, routing));
    }
    expect(seen[1]).toEqual(seen[0]);
    expect(seen[2]).toEqual(seen[0]);
  });

  test('a token has the same result, bit for bit, alone and among others', async () => {
    if (!packs) return;
    const { layer, x, routing } = randomLayer(7);
    using _ = layer;
    await layer.pack();
    const together = await outputs(layer, x, routing);
    for (const token of [0, 1, TOKENS - 1]) {
      const alone = {
        ids: routing.ids.rows(token, token + 1),
        weights: routing.weights.rows(token, token + 1),
      };
      const y = await outputs(layer, x.rows(token, token + 1), alone);
      expect(y).toEqual(together.subarray(token * N, (token + 1) * N));
    }
  });

  test('calls before, while and after it is done give the same, to the rounding of sums', async () => {
    const { layer, x, routing } = randomLayer(4);
    using _ = layer;
    const [first, , second] = await Promise.all([
      outputs(layer, x, routing),
      layer.pack(),
      outputs(layer, x, routing),
    ]);
    expect(relativeError(second, first)).toBeLessThan(1e-6);
  });

  test('an aborted pack leaves the layer as it was, a disposed layer says so', async () => {
    const { layer, x, routing } = randomLayer(5);
    const before = await outputs(layer, x, routing);
    const abort = new AbortController();
    abort.abort();
    await expect(layer.pack({ release: true, signal: abort.signal })).rejects.toThrow(/abort/i);
    expect(await outputs(layer, x, routing)).toEqual(before);
    layer.dispose();
    await expect(layer.pack()).rejects.toMatchObject({ code: 'DISPOSED' });
  });

  test('options that are no object, and inputs of another dtype, are refused', async () => {
    const { layer } = randomLayer(6);
    using _ = layer;
    await expect(layer.pack(7 as never)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(layer.pack({ inputs: 'f16' as never })).rejects.toThrow(
      'Expected f32 or bf16 for inputs but received "f16"',
    );
  });
});

describe.runIf(packs)('pack with inputs rounded to bf16', () => {
  test('results differ by that rounding, and not once inputs are f32 again', async () => {
    const { layer, x, routing } = randomLayer(7);
    using _ = layer;
    await layer.pack();
    const exact = await outputs(layer, x, routing);
    await layer.pack({ inputs: 'bf16' });
    const error = relativeError(await outputs(layer, x, routing), exact);
    expect(error).toBeLessThan(1e-2);
    expect(error).toBeGreaterThan(1e-4);
    await layer.pack({ release: true });
    expect(await outputs(layer, x, routing)).toEqual(exact);
  });

  test('of x counts what bf16 holds', async () => {
    const { layer, x, routing } = randomLayer(8);
    using _ = layer;
    await layer.pack({ inputs: 'bf16' });
    const y = await outputs(layer, x, routing);
    const values = (await x.read()) as Float32Array;
    const rounded = device.tensor(
      'f32',
      values.map((value) => roundTo('bf16', value)),
      [TOKENS, N],
    );
    expect(await outputs(layer, rounded, routing)).toEqual(y);
  });

  test('a token has the same result alone and in a batch, with any number of threads', async () => {
    const { layer, x, routing } = randomLayer(9);
    using _ = layer;
    await layer.pack({ inputs: 'bf16' });
    const together = await outputs(layer, x, routing);
    const [ids, weights] = [routing.ids.rows(5, 6), routing.weights.rows(5, 6)];
    expect(await outputs(layer, x.rows(5, 6), { ids, weights })).toEqual(together.subarray(5 * N, 6 * N));
    using one = await openDevice('cpu', { threads: 1 });
    const other = randomLayer(9, one);
    using _other = other.layer;
    await other.layer.pack({ inputs: 'bf16' });
    expect(await outputs(other.layer, other.x, other.routing)).toEqual(together);
  });

  test('a layer without bf16 weights says so, and stays as it was', async () => {
    const random = new Random(10);
    const weights = (rows: number, cols: number) => [
      toTensor(device, 'f32', random.matrix(rows, cols, 0.1)),
      toTensor(device, 'f32', random.matrix(rows, cols, 0.1)),
    ];
    using layer = new DenseExperts({ gate: weights(M, N), up: weights(M, N), down: weights(N, M) });
    await expect(layer.pack({ inputs: 'bf16' })).rejects.toMatchObject({
      code: 'DTYPE_MISMATCH',
      message: 'Expected bf16 weights to multiply inputs rounded to bf16 with, but this layer has f32',
    });
    await layer.pack();
    await expect(layer.pack({ inputs: 'bf16' })).rejects.toMatchObject({ code: 'DTYPE_MISMATCH' });
  });
});
