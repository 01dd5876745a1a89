import { afterAll, describe, expect, test } from 'vitest';
import { openDevice } from '../lib/device.ts';
import { DenseExperts } from '../lib/experts.ts';
import { MoeBlock, type MoeBlockInit } from '../lib/moe-block.ts';
import type { Tensor } from '../lib/tensor.ts';

const device = await openDevice('cpu');
afterAll(() => device.dispose());

const some = (...shape: number[]) =>
  device.tensor('f32', new Float32Array(shape.reduce((a, b) => a * b)).fill(0.1), shape);
/** 4 experts of width 6 on a stream of width 8. */
const experts = new DenseExperts({ gate: some(4, 6, 8), up: some(4, 6, 8), down: some(4, 8, 6) });
const spec = { scoring: 'softmax', topK: 1, renormalize: true } as const;
const blockOf = (init: Partial<MoeBlockInit> = {}) =>
  new MoeBlock({ router: some(4, 8), spec, experts, ...init });

describe('a MoE layer', () => {
  test.each<[string, Partial<MoeBlockInit>, string, string]>([
    [
      'experts that it lacks',
      { router: some(5, 8) },
      'SHAPE_MISMATCH',
      '[4, 8] for router but received [5, 8]',
    ],
    ['another width', { router: some(4, 9) }, 'SHAPE_MISMATCH', '[4, 8] for router but received [4, 9]'],
    ['a vector', { router: some(8) }, 'SHAPE_MISMATCH', '[4, 8] for router but received [8]'],
    [
      'a bias of another length',
      { correctionBias: some(1, 4) },
      'SHAPE_MISMATCH',
      '[4] for correctionBias but received [1, 4]',
    ],
    [
      'a router in halves',
      { router: device.tensor('bf16', new Uint16Array(32), [4, 8]) as Tensor as Tensor<'f32'> },
      'DTYPE_MISMATCH',
      'f32 for router but received bf16',
    ],
  ])('is not made with a router for %s', (_, init, code, message) => {
    expect(() => blockOf(init)).toThrow(
      expect.objectContaining({ code, message: expect.stringContaining(message) }),
    );
  });

  test.each<[string, Tensor, string, string]>([
    ['of another width', some(3, 5), 'SHAPE_MISMATCH', '[tokens, 8] for x but received [3, 5]'],
    ['of one dimension', some(8), 'SHAPE_MISMATCH', '[tokens, 8] for x but received [8]'],
    [
      'of integers',
      device.tensor('i32', new Int32Array(24), [3, 8]),
      'DTYPE_MISMATCH',
      'a floating dtype for x but received i32',
    ],
  ])('names inputs %s as its own', async (_, x, code, message) => {
    for (const call of [(own: MoeBlock) => own.route(x), (own: MoeBlock) => own.forward(x)]) {
      await expect(call(blockOf())).rejects.toMatchObject({
        code,
        message: expect.stringContaining(message),
      });
    }
  });
});
