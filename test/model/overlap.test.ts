import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { convertCheckpoint } from '../../lib/conversion/convert.ts';
import { calibrate } from '../../lib/model/calibration.ts';
import { compareModels } from '../../lib/model/compare.ts';
import { generate } from '../../lib/model/generate.ts';
import { Model } from '../../lib/model/model.ts';
import { perplexity } from '../../lib/model/perplexity.ts';
import { Tokenizer } from '../../lib/model/tokenizer.ts';
import { Turns } from '../../lib/model/turns.ts';
import { openTestDevice } from '../support/device.ts';
import { TINY } from '../support/fixtures.ts';
import { outputFolder } from '../support/temporary.ts';

const source = TINY;
const folder = await outputFolder('overlap');
const converted = join(folder, 'latent');
const device = await openTestDevice();
await convertCheckpoint(source, converted, { groupSize: 4, latentSize: 96, device });
const model = await Model.open(source, { device });
const latent = await Model.open(converted, { device });
const tokenizer = await Tokenizer.open(source);
const ids = tokenizer.encode('The whale, the sea, the ship and the captain who never came home. '.repeat(20));

afterAll(async () => {
  await Promise.all([model.close(), latent.close()]);
  device.dispose();
});

async function take(of: Model, prompt: readonly number[], maxTokens: number, signal?: AbortSignal) {
  const tokens: number[] = [];
  for await (const token of generate(of, prompt, { maxTokens, signal })) tokens.push(token);
  return tokens;
}

async function logitsOf(of: Model, sequence: readonly number[]) {
  using logits = await of.forward(sequence);
  return Buffer.from((await logits.toFloat32()).buffer).toString('base64');
}

async function seenByLastLayer(of: Model) {
  let seen = '';
  await calibrate(of, ids.slice(0, 180), async ({ layer, x }) => {
    if (layer === 3) seen = Buffer.from((await x.toFloat32()).buffer).toString('base64');
    return undefined;
  });
  return seen;
}

/** Calls of all kinds, each of which uses the model's scratch memory in another shape. */
const calls = (of: Model): (() => Promise<unknown>)[] => [
  () => take(of, tokenizer.encode('Call me'), 12),
  () => logitsOf(of, ids.slice(3, 40)),
  () => perplexity(of, ids.slice(0, 210), { window: 70 }).then((result) => result.perplexity),
  () => take(of, ids.slice(0, 57), 9),
  () => seenByLastLayer(of),
  () => logitsOf(of, ids.slice(0, 111)),
  () => compareModels(model, latent, ids.slice(0, 150), { window: 50 }),
  () => take(of, ids.slice(5, 8), 12),
  () => compareModels(latent, model, ids.slice(0, 150), { window: 50 }),
];

describe.each([
  ['dense', () => model],
  ['converted', () => latent],
])('overlapping calls on one %s model', (_, of) => {
  test('give what they give one after the other, to the last bit', async () => {
    const alone: unknown[] = [];
    for (const call of calls(of())) alone.push(await call());
    const together = [...calls(of()), ...calls(of()).slice(0, 3)].reverse();
    expect(await Promise.all(together.map((call) => call()))).toEqual(
      [...alone, ...alone.slice(0, 3)].reverse(),
    );
  });
});

test('overlapping calls on a model that streams its layers give the same, too', async () => {
  await using streaming = await Model.open(source, { device, stream: true });
  const some = (of: Model) => calls(of).slice(1, 5);
  const results = await Promise.all(some(streaming).map((call) => call()));
  for (const [i, call] of some(model).entries()) expect(results[i]).toEqual(await call());
});

test('two generations take turns, token by token', async () => {
  const order: string[] = [];
  const run = async (name: string) => {
    for await (const _ of generate(model, ids.slice(0, 4), { maxTokens: 6 })) order.push(name);
  };
  await Promise.all([run('a'), run('b')]);
  expect(order.join('')).toBe('abababababab');
});

test('a generation that nobody reads to its end holds up nobody', async () => {
  const abandoned = generate(model, ids.slice(0, 4), { maxTokens: 50 });
  await abandoned.next();
  expect(await take(model, ids.slice(0, 4), 3)).toHaveLength(3);
});

test('a calibration callback may use the model itself', async () => {
  const wanted = await logitsOf(model, ids.slice(0, 20));
  const seen = await seenByLastLayer(model);
  let inside = '';
  let last = '';
  await calibrate(model, ids.slice(0, 180), async ({ layer, x }) => {
    inside = await logitsOf(model, ids.slice(0, 20));
    if (layer === 3) last = Buffer.from((await x.toFloat32()).buffer).toString('base64');
    return undefined;
  });
  expect(inside === wanted).toBe(true);
  expect(last === seen).toBe(true);
});

describe('a signal', () => {
  test('that fires while its call waits ends that one at once, and no other', async () => {
    const controller = new AbortController();
    const finished: string[] = [];
    const long = perplexity(model, ids.slice(0, 250), { window: 250 }).then(() => finished.push('long'));
    const waiting = model.forward(ids.slice(0, 50), controller.signal).catch((error) => {
      finished.push('aborted');
      return error;
    });
    const behind = take(model, ids.slice(0, 9), 4);
    controller.abort(new Error('enough'));
    expect(await waiting).toMatchObject({ code: 'ABORTED', cause: { message: 'enough' } });
    await long;
    expect(finished).toEqual(['aborted', 'long']);
    expect(await behind).toEqual(await take(model, ids.slice(0, 9), 4));
  });

  test('that has fired already refuses before anything is queued', async () => {
    await expect(model.forward([1, 2], AbortSignal.abort())).rejects.toMatchObject({ code: 'ABORTED' });
  });
});

describe('a cache', () => {
  test('takes overlapping extensions in the order in which they were made', async () => {
    using together = model.newCache();
    const [, , last] = await Promise.all([
      model.extend(together, ids.slice(0, 30)),
      model.extend(together, ids.slice(30, 31)),
      model.extend(together, ids.slice(31, 60)),
    ]);
    using apart = model.newCache();
    await model.extend(apart, ids.slice(0, 30));
    await model.extend(apart, ids.slice(30, 31));
    const wanted = await model.extend(apart, ids.slice(31, 60));
    expect(together.length).toBe(60);
    expect(last).toEqual(wanted);
  });

  test('is as it was after an extension that failed in any layer', async () => {
    using wantedCache = model.newCache();
    await model.extend(wantedCache, ids.slice(0, 20));
    const wanted = await model.extend(wantedCache, ids.slice(20, 25));
    for (let layers = 0; layers < 4; layers++) {
      using cache = model.newCache();
      await model.extend(cache, ids.slice(0, 20));
      const controller = new AbortController();
      // The signal is asked once before the turn, and then once before each layer.
      let asked = 0;
      const signal = new Proxy(controller.signal, {
        get(target, key) {
          if (key === 'aborted' && ++asked === 3 + layers) controller.abort();
          const value = Reflect.get(target, key);
          return typeof value === 'function' ? value.bind(target) : value;
        },
      });
      await expect(model.extend(cache, ids.slice(40, 50), signal)).rejects.toMatchObject({ code: 'ABORTED' });
      expect(cache.length).toBe(20);
      await expect(model.extend(cache, [4096])).rejects.toThrow(/Token id 4096/);
      expect(cache.layers.map(({ length }) => length)).toEqual([20, 20, 20, 20]);
      expect(await model.extend(cache, ids.slice(20, 25))).toEqual(wanted);
    }
  });
});

test('a model that closes finishes the piece in progress, and refuses all others', async () => {
  const closing = await Model.open(source, { device });
  const first = closing.forward(ids.slice(0, 60));
  const others = [
    closing.forward([1, 2]),
    take(closing, [1, 2], 3),
    perplexity(closing, ids, { window: 64 }),
  ];
  const results = Promise.allSettled([first, ...others]);
  await Promise.all([closing.close(), closing.close()]);
  const [done, ...refused] = await results;
  expect(done?.status).toBe('fulfilled');
  for (const result of refused)
    expect(result).toMatchObject({ status: 'rejected', reason: { code: 'DISPOSED' } });
  await expect(closing.forward([1])).rejects.toMatchObject({ code: 'DISPOSED' });
});

test('a layer has one substitute at a time: a second comparison would measure the layers of the first', async () => {
  using block = await model.checkpoint.loadMoeBlock(1, { device });
  model.substitute(1, block);
  expect(() => model.substitute(1, block)).toThrow(
    expect.objectContaining({ code: 'INVALID_ARGUMENT', message: expect.stringContaining('Layer 1') }),
  );
  model.substitute(1, undefined);
  model.substitute(1, block);
  model.substitute(1, undefined);
});

test('work that fails lets the next go on', async () => {
  const turns = new Turns();
  const results = await Promise.allSettled([
    turns.take(undefined, () => Promise.reject(new Error('first'))),
    turns.take(undefined, async () => 'second'),
  ]);
  expect(results).toMatchObject([{ reason: { message: 'first' } }, { value: 'second' }]);
});

test('a signal that fires while its own work is at it takes the turn of nobody who waits', async () => {
  const turns = new Turns();
  const controller = new AbortController();
  const order: string[] = [];
  const run = (name: string, signal?: AbortSignal) =>
    turns.take(signal, async () => {
      order.push(name);
      if (name === 'second') controller.abort();
    });
  void run('first');
  const second = run('second', controller.signal);
  void run('third');
  await second;
  await run('fourth');
  expect(order).toEqual(['first', 'second', 'third', 'fourth']);
});
