import { readFile } from 'node:fs/promises';
import { afterAll, describe, expect, test } from 'vitest';
import { SafetensorsFile } from '../../lib/checkpoint/safetensors/reader.ts';
import { Model } from '../../lib/model/model.ts';
import { perplexity } from '../../lib/model/perplexity.ts';
import { expertsTolerance, openTestDevice } from '../support/device.ts';
import { fixture, TINY } from '../support/fixtures.ts';
import { relativeError } from '../support/reference.ts';

// Golden values by PyTorch in f32 on the bf16 weights: see test/fixtures/README.md.
const device = await openTestDevice();
const model = await Model.open(TINY, { device });
const golden = await SafetensorsFile.open(fixture('golden-tiny-qwen2-moe.safetensors'));
const texts = await SafetensorsFile.open(fixture('ppl-tokens.safetensors'));

const tolerance = expertsTolerance(device, 1e-5);

afterAll(async () => {
  await model.close();
  await golden.close();
  await texts.close();
  device.dispose();
});

async function ids(file: SafetensorsFile, name: string): Promise<number[]> {
  const bytes = await file.read(name);
  return [...new BigInt64Array(bytes.slice().buffer)].map(Number);
}

const floats = async (name: string) => new Float32Array((await golden.read(name)).slice().buffer);

describe('the trained checkpoint against PyTorch', () => {
  test('the hidden states that reach every MoE layer match within 1e-5', async () => {
    const tokens = await ids(golden, 'input_ids');
    const { batchOfSequences } = await import('../../lib/model/batch.ts');
    const batch = batchOfSequences(device, [tokens.length]);
    await model.turn(undefined, async (context) => {
      using hidden = await model.embed(context, tokens);
      using h = device.empty('f32', hidden.shape);
      for (let index = 0; index < 4; index++) {
        await model.withLayer(index, async (layer) => {
          layer.attend(context, hidden, batch);
          layer.normalize(context, hidden, h);
          await context.operations.settle();
          expect(relativeError(await h.read(), await floats(`layers.${index}.moe_input`))).toBeLessThan(
            tolerance,
          );
          layer.applyExperts(context, h, await layer.route(h), hidden);
          await context.operations.settle();
        });
      }
    });
  });

  test('the logits of 192 tokens match within 1e-5', async () => {
    using logits = await model.forward(await ids(golden, 'input_ids'));
    expect(relativeError(await logits.toFloat32(), await floats('logits'))).toBeLessThan(tolerance);
  });

  test('perplexity on three texts matches to 1e-5', async () => {
    const wanted = JSON.parse(await readFile(fixture('ppl-tiny-qwen2-moe.json'), 'utf8'));
    for (const [name, { perplexity: value, tokens, window }] of Object.entries<{
      perplexity: number;
      tokens: number;
      window: number;
    }>(wanted)) {
      const ours = await perplexity(model, await ids(texts, name), { window });
      expect(ours.tokens).toBe(tokens);
      expect(Math.abs(ours.perplexity / value - 1)).toBeLessThan(tolerance);
    }
  });

  test('a streamed model gives the same perplexity, to the bit', async () => {
    const tokens = (await ids(texts, 'moby')).slice(0, 1000);
    const resident = await perplexity(model, tokens);
    await using streamed = await Model.open(TINY, { device, stream: true });
    expect((await perplexity(streamed, tokens)).perplexity).toBe(resident.perplexity);
  });

  test('decoding token by token with a cache gives the logits of the whole sequence', async () => {
    const tokens = (await ids(golden, 'input_ids')).slice(0, 40);
    const whole = await floats('logits');
    using cache = model.newCache(40);
    const prefix = await model.extend(cache, tokens.slice(0, 25));
    expect(relativeError(prefix, whole.subarray(24 * 4096, 25 * 4096))).toBeLessThan(tolerance);
    for (let t = 25; t < 40; t++) {
      const logits = await model.extend(cache, [tokens[t] as number]);
      expect(relativeError(logits, whole.subarray(t * 4096, (t + 1) * 4096))).toBeLessThan(tolerance);
    }
    await expect(model.extend(cache, [1])).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });
});
