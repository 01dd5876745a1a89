import { afterAll, describe, expect, test } from 'vitest';
import { openCheckpoint } from '../../lib/checkpoint/checkpoint.ts';
import { namingTensor } from '../../lib/checkpoint/non-finite-tensor.ts';
import { openDevice } from '../../lib/device.ts';
import { MolaeError } from '../../lib/errors.ts';
import { NonFiniteExpertError } from '../../lib/factorization/non-finite-expert.ts';
import { compressModel } from '../../lib/methods/compressed-model.ts';
import { roundTo8Bits } from '../../lib/methods/round-to-nearest.ts';
import { stackedSvd } from '../../lib/methods/stacked-svd.ts';
import { Model } from '../../lib/model/model.ts';
import { copyDamaged } from '../support/damaged.ts';
import { fixture, TINY } from '../support/fixtures.ts';
import { freshPaths, outputFolder } from '../support/temporary.ts';

const device = await openDevice('cpu');
afterAll(() => device.dispose());
const freshPath = freshPaths(await outputFolder('non-finite'));

describe('NaN or infinity among the experts of a checkpoint', () => {
  const found = new NonFiniteExpertError('up', 1, '[2, 5]', new MolaeError('NON_FINITE', 'at [2, 5]'));

  test('is told by the tensor, and by its part where the tensor holds more', async () => {
    const message = async (path: string) => {
      await using checkpoint = await openCheckpoint(path);
      const work = () => Promise.reject(found);
      return namingTensor(checkpoint, 0, work).catch((error: MolaeError) => error.message);
    };
    expect(await message(TINY)).toBe(
      'Tensor model.layers.0.mlp.experts.1.up_proj.weight has NaN or infinity at [2, 5]',
    );
    expect(await message(fixture('families/granitemoe'))).toBe(
      'Tensor model.layers.0.block_sparse_moe.input_linear.weight has NaN or infinity at [2, 5] of the up matrix of expert 1',
    );
  });

  test('leaves other errors as they are', async () => {
    await using checkpoint = await openCheckpoint(TINY);
    const other = new MolaeError('ABORTED', 'The operation was aborted');
    await expect(namingTensor(checkpoint, 0, () => Promise.reject(other))).rejects.toBe(other);
  });

  test.each([stackedSvd, roundTo8Bits])('is told so by $name in memory', async (method) => {
    const name = 'model.layers.2.mlp.experts.9.down_proj.weight';
    const copy = freshPath();
    await copyDamaged(TINY, copy, name, 7 * 96 + 5, 0xff80);
    await using model = await Model.open(copy, { device });
    const request = { model, calibration: [1, 2], targetRatio: 0.5, groupSize: 4 };
    await expect(
      compressModel(model, await method.prepare(request), request.calibration, {}),
    ).rejects.toMatchObject({
      code: 'NON_FINITE',
      message: `Tensor ${name} has NaN or infinity at [7, 5]`,
    });
  });
});
