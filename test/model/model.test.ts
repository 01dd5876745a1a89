import { cp, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, describe, expect, onTestFinished, test, vi } from 'vitest';
import { Checkpoint, openCheckpoint } from '../../lib/checkpoint/checkpoint.ts';
import { SafetensorsFile } from '../../lib/checkpoint/safetensors/reader.ts';
import { convertCheckpoint } from '../../lib/conversion/convert.ts';
import type { DenseExperts, Experts } from '../../lib/experts.ts';
import { factorizeExperts } from '../../lib/factorization/factorize.ts';
import { calibrate } from '../../lib/model/calibration.ts';
import { compareModels } from '../../lib/model/compare.ts';
import { type FinishReason, generate } from '../../lib/model/generate.ts';
import { Model } from '../../lib/model/model.ts';
import { perplexity } from '../../lib/model/perplexity.ts';
import { groupProbabilities, routingStatistics } from '../../lib/model/routing-statistics.ts';
import { Tokenizer } from '../../lib/model/tokenizer.ts';
import { cutWindows } from '../../lib/model/windows.ts';
import { expertsTolerance, openOwnDevice, openTestDevice } from '../support/device.ts';
import { molaeError } from '../support/errors.ts';
import { fixture, TINY } from '../support/fixtures.ts';
import { relativeError } from '../support/reference.ts';
import { outputFolder, temporaryFolder } from '../support/temporary.ts';

const source = TINY;
const device = await openTestDevice();
const folder = await outputFolder('model');
const converted = join(folder, 'latent');
await convertCheckpoint(source, converted, { groupSize: 4, latentSize: 160, device });
const model = await Model.open(source, { device });
const latent = await Model.open(converted, { device });
const tokenizer = await Tokenizer.open(source);
const golden = await SafetensorsFile.open(fixture('golden-tiny-qwen2-moe.safetensors'));
const prose =
  'Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in my purse, I thought I would sail about a little and see the watery part of the world. '.repeat(
    12,
  );
const ids = tokenizer.encode(prose);

afterAll(async () => {
  await Promise.all([model.close(), latent.close(), golden.close()]);
  device.dispose();
});

async function take(count: number, prompt: number[], options = {}, of = model): Promise<number[]> {
  const tokens: number[] = [];
  for await (const token of generate(of, prompt, { maxTokens: count, ...options })) tokens.push(token);
  return tokens;
}

describe('a converted model', () => {
  test('predicts a little worse than its source, and much better than chance', async () => {
    const before = await perplexity(model, ids);
    const after = await perplexity(latent, ids);
    expect(after.tokens).toBe(before.tokens);
    expect(after.perplexity / before.perplexity).toBeGreaterThan(0.9);
    expect(after.perplexity / before.perplexity).toBeLessThan(1.5);
  });

  test('diverges from its source by a small positive amount, and a model from itself by nothing', async () => {
    const apart = await compareModels(model, latent, ids.slice(0, 400), { window: 100 });
    expect(apart.klDivergence).toBeGreaterThan(1e-5);
    expect(apart.klDivergence).toBeLessThan(1);
    expect(apart.topOneAgreement).toBeGreaterThan(0.5);
    expect(apart.tokens).toBe(396);
    expect(await compareModels(model, model, ids.slice(0, 300), { window: 100 })).toMatchObject({
      klDivergence: 0,
      topOneAgreement: 1,
    });
  });
});

describe('opening a model that fails', () => {
  test('gives back the memory of all that was loaded', async () => {
    using own = await openOwnDevice();
    const controller = new AbortController();
    const opening = Model.open(source, {
      device: own,
      signal: controller.signal,
      onProgress: () => controller.abort(),
    });
    await expect(opening).rejects.toMatchObject({ code: 'ABORTED' });
    expect(own.memoryUsage().tensors).toBe(0);
  });

  test('heeds a signal that has fired and refuses what is none, also where no layer is loaded', async () => {
    const open = (options: object) => Model.open(source, { device, stream: true, ...options });
    await expect(open({ signal: AbortSignal.abort() })).rejects.toMatchObject({ code: 'ABORTED' });
    for (const [options, name] of [
      [{ signal: 1 }, 'signal'],
      [{ onProgress: 'x' }, 'onProgress'],
    ] as const) {
      const refused = { code: 'INVALID_ARGUMENT', message: expect.stringContaining(name) };
      await expect(open(options)).rejects.toMatchObject(refused);
      await expect(perplexity(model, ids, options as object)).rejects.toMatchObject(refused);
      await expect(compareModels(model, model, ids, options as object)).rejects.toMatchObject(refused);
    }
  });

  test('closes the files where there is no such device', async () => {
    vi.stubEnv('MOLAE_BACKEND', 'tpu');
    onTestFinished(() => void vi.unstubAllEnvs());
    const close = vi.spyOn(Checkpoint.prototype, 'close');
    onTestFinished(() => close.mockRestore());
    await expect(Model.open(source)).rejects.toThrow('MOLAE_BACKEND');
    expect(close).toHaveBeenCalledOnce();
  });
});

describe('a packed model', () => {
  test('predicts the same, and keeps no second copy of its experts', async () => {
    await using packed = await Model.open(source, { device, pack: true });
    using logits = await packed.forward(ids.slice(0, 50));
    using wanted = await model.forward(ids.slice(0, 50));
    expect(relativeError(await logits.read(), await wanted.read())).toBeLessThan(
      expertsTolerance(device, 1e-5),
    );
    const experts = await packed.withLayer(0, async (layer) => layer.experts);
    expect(() => (experts as DenseExperts).gate[0]?.readSync()).toThrow(
      expect.objectContaining({ code: 'DISPOSED' }),
    );
  });

  test.runIf(device.kind === 'cpu')('rounds inputs where it is told to', async () => {
    await using packed = await Model.open(source, { device, pack: { inputs: 'bf16' } });
    using logits = await packed.forward(ids.slice(0, 50));
    using wanted = await model.forward(ids.slice(0, 50));
    const error = relativeError(await logits.read(), await wanted.read());
    expect(error).toBeGreaterThan(1e-4);
    expect(error).toBeLessThan(2e-2);
  });

  test('is refused where layers stream', async () => {
    await expect(Model.open(source, { device, pack: true, stream: true })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
    });
  });
});

test('the perplexity of a text does not depend on which windows go through the model together', async () => {
  const window = 64;
  const together = await perplexity(model, ids, { window });
  let [loss, tokens] = [0, 0];
  for (const alone of cutWindows(ids, window)) {
    const one = await perplexity(model, alone, { window });
    loss += Math.log(one.perplexity) * one.tokens;
    tokens += one.tokens;
  }
  expect(tokens).toBe(together.tokens);
  expect(Math.abs(Math.exp(loss / tokens) / together.perplexity - 1)).toBeLessThan(
    expertsTolerance(device, 5e-7),
  );
});

test('models of other vocabularies are not compared, and both are named', async () => {
  const path = fixture('families/olmoe');
  await using other = await Model.open(path, { device });
  await expect(compareModels(model, other, ids)).rejects.toMatchObject({
    code: 'SHAPE_MISMATCH',
    message: expect.stringContaining(`${source} has a vocabulary of 4096 tokens, ${path} one of 64`),
  });
});

describe('calibration', () => {
  test('delivers the inputs that PyTorch saw at every MoE layer, and the routing of them', async () => {
    const bytes = await golden.read('input_ids');
    const tokens = [...new BigInt64Array(bytes.slice().buffer)].map(Number);
    const seen: number[] = [];
    await calibrate(model, tokens, async ({ layer, x, routing, block }) => {
      seen.push(layer);
      const wanted = new Float32Array((await golden.read(`layers.${layer}.moe_input`)).slice().buffer);
      expect(relativeError(await x.read(), wanted)).toBeLessThan(expertsTolerance(device, 1e-5));
      const own = await block.route(x);
      expect(await routing.ids.read()).toEqual(await own.ids.read());
      return undefined;
    });
    expect(seen).toEqual([0, 1, 2, 3]);
  });

  test('goes on with the experts that the callback puts in place: exact ones change nothing, others all later layers', async () => {
    const inputs = async (latentSize: number | undefined) => {
      const replaced: Experts[] = [];
      let last = new Float32Array();
      await calibrate(model, ids.slice(0, 200), async ({ layer, x, block }) => {
        if (layer === 3) last = (await x.read()) as Float32Array<ArrayBuffer>;
        if (latentSize === undefined || layer > 0) return undefined;
        const experts = await factorizeExperts(block.experts as DenseExperts, {
          groupSize: 4,
          latentSize,
          dtype: 'f32',
        });
        replaced.push(experts);
        return experts;
      });
      for (const experts of replaced) experts.dispose();
      return last;
    };
    const plain = await inputs(undefined);
    expect(relativeError(await inputs(256), plain)).toBeLessThan(expertsTolerance(device, 1e-4));
    expect(relativeError(await inputs(32), plain)).toBeGreaterThan(2 * expertsTolerance(device, 1e-2));
  });

  test('counts experts, pairs and groups as plain loops over the ids do', async () => {
    await calibrate(model, ids.slice(0, 300), async ({ layer, routing }) => {
      if (layer > 0) return undefined;
      const chosen = await routing.ids.read();
      const { expertCounts, coActivation, tokens } = await routingStatistics(routing, 16);
      expect(tokens).toBe(300);
      expect(expertCounts.reduce((a, b) => a + b)).toBe(300 * 4);
      expect(expertCounts[5]).toBe(chosen.filter((id) => id === 5).length);
      expect(coActivation.reduce((a, b) => a + b)).toBe(300 * 4 * 3);
      expect(coActivation[3 * 16 + 7]).toBe(coActivation[7 * 16 + 3]);
      const [first] = await groupProbabilities(routing, [
        [0, 1, 2, 3],
        Array.from({ length: 12 }, (_, i) => i + 4),
      ]);
      const users = Array.from({ length: 300 }, (_, t) =>
        chosen.subarray(4 * t, 4 * t + 4).some((id) => id < 4),
      ).filter(Boolean);
      expect(first).toBeCloseTo(users.length / 300, 12);
      return undefined;
    });
  });
});

describe('generation', () => {
  const prompt = tokenizer.encode('The captain said');

  test('greedy decoding takes the most likely token of the whole sequence each time', async () => {
    const tokens = await take(6, prompt);
    for (let i = 0; i < tokens.length; i++) {
      using logits = await model.forward([...prompt, ...tokens.slice(0, i)]);
      const values = (await logits.toFloat32()).subarray(-4096);
      const short = Math.max(...values) - (values[tokens[i] as number] as number);
      expect(short).toBeLessThanOrEqual(expertsTolerance(device, 0));
    }
  });

  test('the same seed gives the same text, another one another', async () => {
    const sample = (seed: number) => take(20, prompt, { temperature: 1, topP: 0.95, seed });
    expect(await sample(1)).toEqual(await sample(1));
    expect(await sample(1)).not.toEqual(await sample(2));
  });

  test('ends where the context ends; longer prompts and empty ones are refused', async () => {
    const long = ids.slice(0, 250);
    expect(await take(100, long)).toHaveLength(6);
    await expect(take(1, ids.slice(0, 256))).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(take(1, [])).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(take(1, [4096])).rejects.toThrow(/Token id 4096/);
  });

  test('says why it ended: enough tokens, a full context or the token that means the end', async () => {
    const reason = async (count: number, of: number[], by = model) => {
      const reasons: FinishReason[] = [];
      const tokens = await take(count, of, { onFinish: (why: FinishReason) => reasons.push(why) }, by);
      expect(reasons).toHaveLength(1);
      return { reason: reasons[0], tokens };
    };
    expect(await reason(3, prompt)).toMatchObject({ reason: 'maxTokens' });
    expect(await reason(100, ids.slice(0, 250))).toMatchObject({ reason: 'context' });
    const [first, second] = await take(2, prompt);
    const ending = join(folder, 'ending');
    await cp(source, ending, { recursive: true });
    const config = JSON.parse(await readFile(join(source, 'config.json'), 'utf8'));
    await writeFile(join(ending, 'config.json'), JSON.stringify({ ...config, eos_token_id: second }));
    await using other = await Model.open(ending, { device });
    expect(await reason(9, prompt, other)).toEqual({ reason: 'endToken', tokens: [first] });
    let called = false;
    for await (const _ of generate(model, prompt, { onFinish: () => (called = true) })) break;
    expect(called).toBe(false);
  });

  test('ends at the tokens of config.json and of generation_config.json, which must be JSON', async () => {
    const chat = join(folder, 'chat');
    await cp(source, chat, { recursive: true });
    const settings = join(chat, 'generation_config.json');
    const [first, second, third] = (await take(3, prompt)) as [number, number, number];
    const tokens = async (eos_token_id: unknown) => {
      await writeFile(settings, JSON.stringify({ eos_token_id, temperature: 9, do_sample: true }));
      await using other = await Model.open(chat, { device });
      return { made: await take(3, prompt, {}, other), ends: other.endTokens };
    };
    expect(await tokens([4095, third])).toEqual({ made: [first, second], ends: new Set([0, 4095, third]) });
    expect(await tokens(second)).toEqual({ made: [first], ends: new Set([0, second]) });
    expect(await tokens(undefined)).toEqual({ made: [first, second, third], ends: new Set([0]) });
    for (const broken of ['{', '[]']) {
      await writeFile(settings, broken);
      await expect(Model.open(chat, { device })).rejects.toMatchObject(
        molaeError('BAD_CHECKPOINT', settings),
      );
    }
  });

  test('stops when aborted', async () => {
    const controller = new AbortController();
    const tokens: number[] = [];
    const run = (async () => {
      for await (const token of generate(model, prompt, { signal: controller.signal })) {
        tokens.push(token);
        if (tokens.length === 3) controller.abort();
      }
    })();
    await expect(run).rejects.toMatchObject({ code: 'ABORTED' });
    expect(tokens).toHaveLength(3);
  });
});

test('activations that break name the layer whose router saw them', async () => {
  const broken = join(folder, 'broken');
  await cp(source, broken, { recursive: true });
  const checkpoint = await openCheckpoint(broken);
  const name = 'model.layers.2.self_attn.o_proj.weight';
  const { shard } = checkpoint.shards.tensor(name);
  await checkpoint.close();
  const file = await readFile(join(broken, shard));
  const headerBytes = Number(file.readBigUInt64LE(0));
  const header = JSON.parse(file.subarray(8, 8 + headerBytes).toString());
  file.writeUInt16LE(0x7fc0, 8 + headerBytes + header[name].data_offsets[0]);
  await writeFile(join(broken, shard), file);
  await using model = await Model.open(broken, { device });
  await expect(perplexity(model, ids)).rejects.toMatchObject({
    code: 'NON_FINITE',
    // A GPU tells when it is next waited for, which is after the layer.
    message: expect.stringContaining(
      `${device.kind === 'cuda' ? '' : 'Layer 2: '}The router logits of token`,
    ),
  });
});

describe('text', () => {
  test('any Unicode survives encoding and decoding', () => {
    for (const text of [
      'naïve café',
      '日本語 😀',
      'a\u0000b',
      '\u202Eright to left',
      '  spaces\n\n\ttabs ',
    ]) {
      expect(tokenizer.decode(tokenizer.encode(text))).toBe(text);
    }
  });

  test('windows do not overlap; a last one of a single token does not count', () => {
    expect(cutWindows([1, 2, 3, 4, 5], 2)).toEqual([
      [1, 2],
      [3, 4],
    ]);
    expect(cutWindows([1, 2, 3, 4, 5], 3)).toEqual([
      [1, 2, 3],
      [4, 5],
    ]);
    expect(cutWindows([1], 3)).toEqual([]);
  });

  test('a window longer than the context, or one token, is refused', async () => {
    await expect(perplexity(model, ids, { window: 257 })).rejects.toThrow(
      /2 to 256 \(the model's context\) for window/,
    );
    for (const short of [perplexity(model, [1]), compareModels(model, latent, [1])]) {
      await expect(short).rejects.toThrow('Expected at least two tokens for ids but received 1 tokens');
    }
  });

  test('token ids that are no whole numbers are refused', async () => {
    for (const wrong of [1.5, Number.NaN, undefined as unknown as number]) {
      await expect(perplexity(model, [1, 2, wrong, 3])).rejects.toMatchObject({
        code: 'INVALID_ARGUMENT',
        message: expect.stringContaining('token id 2'),
      });
    }
  });

  test('chat templates: the default of several is used, and what one refuses is told', async () => {
    const copy = await temporaryFolder();
    const config = JSON.parse(await readFile(join(source, 'tokenizer_config.json'), 'utf8'));
    await cp(join(source, 'tokenizer.json'), join(copy, 'tokenizer.json'));
    const chat = async (chat_template: unknown) => {
      await writeFile(join(copy, 'tokenizer_config.json'), JSON.stringify({ ...config, chat_template }));
      return (await Tokenizer.open(copy)).applyChatTemplate([{ role: 'user', content: 'hello' }]);
    };
    const said = "{{ messages[0]['content'] }}!";
    expect(await chat(said)).toBe('hello!');
    expect(
      await chat([
        { name: 'tools', template: 'other' },
        { name: 'default', template: said },
      ]),
    ).toBe('hello!');
    await expect(chat([{ name: 'tools', template: said }])).rejects.toThrow(/no chat template/);
    for (const broken of ["{{ raise_exception('no users') }}", '{% if %}']) {
      await expect(chat(broken)).rejects.toMatchObject({ code: 'UNSUPPORTED_CHECKPOINT' });
    }
    await expect(chat("{{ raise_exception('no users') }}")).rejects.toThrow(/no users/);
  });

  test('chat templates: one in a file of its own goes before that of the config, and special tokens may be objects', async () => {
    const copy = await temporaryFolder();
    const config = JSON.parse(await readFile(join(source, 'tokenizer_config.json'), 'utf8'));
    await cp(join(source, 'tokenizer.json'), join(copy, 'tokenizer.json'));
    await writeFile(
      join(copy, 'tokenizer_config.json'),
      JSON.stringify({ ...config, bos_token: { content: '<|endoftext|>' }, chat_template: 'of the config' }),
    );
    await writeFile(
      join(copy, 'chat_template.jinja'),
      "{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}",
    );
    const chat = (await Tokenizer.open(copy)).applyChatTemplate([{ role: 'user', content: 'hello' }]);
    expect(chat).toBe('<|endoftext|>hello<|endoftext|>');
    await writeFile(
      join(copy, 'chat_template.jinja'),
      'version https://git-lfs.github.com/spec/v1\noid sha256:0\n',
    );
    await expect(Tokenizer.open(copy)).rejects.toMatchObject({
      code: 'BAD_CHECKPOINT',
      message: expect.stringContaining('chat_template.jinja: a Git LFS pointer'),
    });
  });

  test('a checkpoint without a tokenizer or a chat template says so', async () => {
    await expect(Tokenizer.open(folder)).rejects.toMatchObject({
      code: 'BAD_CHECKPOINT',
      message: expect.stringContaining('tokenizer.json'),
    });
    expect(() => tokenizer.applyChatTemplate([{ role: 'user', content: 'hello' }])).toThrow(
      /no chat template/,
    );
  });
});
