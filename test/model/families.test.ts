import { fileURLToPath } from 'node:url';
import { afterAll, describe, expect, test } from 'vitest';
import { SafetensorsFile } from '../../lib/checkpoint/safetensors/reader.ts';
import { Model } from '../../lib/model/model.ts';
import { expertsTolerance, openOwnDevice, openTestDevice } from '../support/device.ts';
import { relativeError } from '../support/reference.ts';

// Tiny random checkpoints and their logits by the real transformers: test/fixtures/make/families.py.
const fixture = (name: string) => fileURLToPath(new URL(`../fixtures/families/${name}`, import.meta.url));
const device = await openTestDevice();
const tolerance = expertsTolerance(device, 1e-4);
afterAll(() => device.dispose());

async function goldenOf(name: string) {
  const golden = await SafetensorsFile.open(`${fixture(name)}/golden.safetensors`);
  const tokens = [...new Int32Array((await golden.read('tokens')).slice().buffer)];
  const logits = new Float32Array((await golden.read('logits')).slice().buffer);
  await golden.close();
  return { tokens, logits };
}

describe.each([
  'qwen2_moe',
  'qwen3_moe',
  'olmoe',
  'mixtral',
  'deepseek_v2',
  'deepseek_v2_groups',
  'deepseek_v3',
  'deepseek_v3_one_group',
])('%s', (name) => {
  test('the logits match those of transformers within 1e-4', async () => {
    const { tokens, logits } = await goldenOf(name);
    await using model = await Model.open(fixture(name), { device });
    using ours = await model.forward(tokens);
    expect(relativeError(await ours.toFloat32(), logits)).toBeLessThan(tolerance);
  });

  test('decoding in pieces with a cache gives the same logits', async () => {
    const { tokens, logits } = await goldenOf(name);
    const vocabulary = logits.length / tokens.length;
    await using model = await Model.open(fixture(name), { device });
    using cache = model.newCache(tokens.length);
    let done = 0;
    for (const count of [5, 1, 1, 10, 7]) {
      const last = await model.extend(cache, tokens.slice(done, done + count));
      done += count;
      expect(relativeError(last, logits.subarray((done - 1) * vocabulary, done * vocabulary))).toBeLessThan(
        tolerance,
      );
    }
    expect(done).toBe(tokens.length);
  });
});

describe.each(['deepseek_v2', 'deepseek_v2_groups', 'deepseek_v3', 'deepseek_v3_one_group'])(
  'latent attention of %s',
  (name) => {
    test('decoding one token at a time, from the first on, gives the logits of the whole sequence', async () => {
      const { tokens, logits } = await goldenOf(name);
      const vocabulary = logits.length / tokens.length;
      await using model = await Model.open(fixture(name), { device });
      using cache = model.newCache(tokens.length);
      const ours = new Float32Array(logits.length);
      for (const [t, token] of tokens.entries()) ours.set(await model.extend(cache, [token]), t * vocabulary);
      expect(relativeError(ours, logits)).toBeLessThan(tolerance);
    });

    test('a position takes the latent vector and the rotated part of its key, whatever the number of heads', async () => {
      using own = await openOwnDevice();
      await using model = await Model.open(fixture(name), { device: own });
      const { config } = model.checkpoint;
      const before = own.memoryUsage().tensors;
      using cache = model.newCache(20);
      const wanted =
        4 * 20 * model.spec.numLayers * (Number(config.kv_lora_rank) + Number(config.qk_rope_head_dim));
      expect(cache.byteLength).toBe(wanted);
      expect(own.memoryUsage().tensors - before).toBe(wanted);
    });
  },
);

test('grouped-query attention caches keys and values of the heads that have their own', async () => {
  await using model = await Model.open(fixture('qwen3_moe'), { device });
  const { kvHeads, headSize, valueSize } = model.spec.attention;
  using cache = model.newCache(20);
  expect(cache.byteLength).toBe(4 * 20 * model.spec.numLayers * kvHeads * (headSize + valueSize));
});

test('a family that molae converts but cannot run says so', async () => {
  await expect(Model.open(fixture('phimoe'), { device })).rejects.toMatchObject({
    code: 'UNSUPPORTED_CHECKPOINT',
    message: expect.stringContaining('cannot run them yet'),
  });
});
