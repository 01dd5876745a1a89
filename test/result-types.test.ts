import { afterAll, describe, expect, expectTypeOf, test } from 'vitest';
import { openDevice } from '../lib/device.ts';
import type { DType } from '../lib/dtype.ts';
import { DenseExperts } from '../lib/experts.ts';
import { batchedGemm, eigh, type GemmOptions, gemm, groupedGemm, svd, transpose } from '../lib/linalg.ts';
import { MoeBlock } from '../lib/moe-block.ts';
import { quantizeExperts } from '../lib/quantize.ts';
import type { Tensor } from '../lib/tensor.ts';

// The types hold where `npm run typecheck` passes; that they are true is what runs here.

const device = await openDevice('cpu');
afterAll(() => device.dispose());

const f32 = device.tensor('f32', Float32Array.of(2, 0, 0, 1), [2, 2]);
const bf16 = await f32.to('bf16');
/** A tensor of which the compiler knows no dtype. */
const some: Tensor = bf16;

function isOf<D extends DType>(tensor: Tensor<D>, dtype: D): void {
  expect(tensor.dtype).toBe(dtype);
}

describe('the dtype of a product', () => {
  test('is that of A', async () => {
    const c = await gemm(f32, f32, { transposeB: true });
    expectTypeOf(c).toEqualTypeOf<Tensor<'f32'>>();
    isOf(c, 'f32');
    const halves = await gemm(bf16, bf16);
    expectTypeOf(halves).toEqualTypeOf<Tensor<'bf16'>>();
    isOf(halves, 'bf16');
    expectTypeOf(await gemm(some, some)).toEqualTypeOf<Tensor>();
  });

  test('is that of out, where out is given', async () => {
    const out = device.empty('f32', [2, 2]);
    const c = await gemm(bf16, bf16, { out });
    expectTypeOf(c).toEqualTypeOf<Tensor<'f32'>>();
    expect(c).toBe(out);
    const maybe = (Math.random() < 2 ? undefined : out) as Tensor<'f32'> | undefined;
    const either = await gemm(bf16, bf16, { out: maybe });
    expectTypeOf(either).toEqualTypeOf<Tensor<'f32'> | Tensor<'bf16'>>();
    expect(either.dtype).toBe('bf16');
    const options: GemmOptions = { out };
    expectTypeOf(await gemm(f32, f32, options)).toEqualTypeOf<Tensor | Tensor<'f32'>>();
  });

  test('of a batch is the same', async () => {
    const c = await batchedGemm(bf16.reshape([1, 2, 2]), bf16.reshape([1, 2, 2]));
    expectTypeOf(c).toEqualTypeOf<Tensor<'bf16'>>();
    isOf(c, 'bf16');
  });

  test('of a group is that of each problem', async () => {
    const out = device.empty('f32', [2, 2]);
    const [a, b, c] = await groupedGemm([
      { a: f32, b: f32 },
      { a: bf16, b: bf16, transposeA: true },
      { a: bf16, b: bf16, out },
    ]);
    expectTypeOf(a).toEqualTypeOf<Tensor<'f32'>>();
    expectTypeOf(b).toEqualTypeOf<Tensor<'bf16'>>();
    expectTypeOf(c).toEqualTypeOf<Tensor<'f32'>>();
    isOf(a, 'f32');
    isOf(b, 'bf16');
    expect(c).toBe(out);
    const list = [1, 2].map(() => ({ a: f32, b: f32 }));
    const products = await groupedGemm(list);
    expectTypeOf(products).toEqualTypeOf<Tensor<'f32'>[]>();
    expect(products).toHaveLength(2);
  });
});

test('decompositions and transposes keep the dtype', async () => {
  const { u, s, vt } = await svd(f32);
  const { values, vectors } = await eigh(f32);
  for (const tensor of [u, s, vt, values, vectors]) {
    expectTypeOf(tensor).toEqualTypeOf<Tensor<'f32'>>();
    isOf(tensor, 'f32');
  }
  expectTypeOf(await transpose(bf16)).toEqualTypeOf<Tensor<'bf16'>>();
});

describe('layers', () => {
  const stack = (tensor: Tensor<'f32'>) => [tensor, tensor];
  const experts = new DenseExperts({ gate: stack(f32), up: stack(f32), down: stack(f32) });
  const spec = { scoring: 'softmax', topK: 1, renormalize: true } as const;
  const block = new MoeBlock({ router: f32, spec, experts });

  test('give y in the dtype of x, or out', async () => {
    const routing = await block.route(bf16);
    const y = await experts.forward(bf16, routing);
    const sync = experts.forwardSync(bf16, routing);
    const whole = await block.forward(bf16);
    for (const tensor of [y, sync, whole]) {
      expectTypeOf(tensor).toEqualTypeOf<Tensor<'bf16'>>();
      isOf(tensor, 'bf16');
    }
    const out = device.empty('bf16', [2, 2]);
    const given = await experts.forward(some, routing, { out });
    expectTypeOf(given).toEqualTypeOf<Tensor<'bf16'>>();
    expect(given).toBe(out);
    expect(experts.forwardSync(some, routing, { out })).toBe(out);
    expect(await block.forward(some, { out })).toBe(out);
    expectTypeOf(await experts.forward(some, routing)).toEqualTypeOf<Tensor>();
  });

  test('have router logits in f32, and stay what they are in blocks', async () => {
    const logits = await block.routerLogits(some);
    expectTypeOf(logits).toEqualTypeOf<Tensor<'f32'>>();
    isOf(logits, 'f32');
    using blocks = await quantizeExperts(experts, 'q8');
    expectTypeOf(blocks).toEqualTypeOf<DenseExperts>();
    expect(blocks).toBeInstanceOf(DenseExperts);
  });
});
