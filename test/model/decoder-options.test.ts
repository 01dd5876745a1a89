import { readFile, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { SafetensorsFile } from '../../lib/checkpoint/safetensors/reader.ts';
import { Model } from '../../lib/model/model.ts';
import { expertsTolerance, openTestDevice } from '../support/device.ts';
import { fixture } from '../support/fixtures.ts';
import { relativeError } from '../support/reference.ts';
import { temporaryFolder } from '../support/temporary.ts';

// The checkpoints of test/fixtures/families with other configs, by the real transformers: test/fixtures/make/decoder_options.py.
const golden = await SafetensorsFile.open(fixture('decoder-options.safetensors'));
const cases = JSON.parse(golden.metadata.get('cases') as string) as Record<
  string,
  { readonly folder: string; readonly fields: Readonly<Record<string, unknown>> }
>;
const device = await openTestDevice();
const tolerance = expertsTolerance(device, 1e-4);

afterAll(async () => {
  await golden.close();
  device.dispose();
});

test.each(Object.entries(cases))('%s: the logits match those of transformers', async (name, of) => {
  const source = fixture(`families/${of.folder}`);
  const copy = await temporaryFolder();
  await symlink(join(source, 'model.safetensors'), join(copy, 'model.safetensors'));
  const config = JSON.parse(await readFile(join(source, 'config.json'), 'utf8'));
  await writeFile(join(copy, 'config.json'), JSON.stringify({ ...config, ...of.fields }));
  const tokens = await tokensOf(source);
  const wanted = new Float32Array((await golden.read(name)).slice().buffer);

  await using model = await Model.open(copy, { device });
  using logits = await model.forward(tokens);
  const ours = (await logits.toFloat32()).subarray(-wanted.length);
  expect(relativeError(ours, wanted)).toBeLessThan(tolerance);

  using cache = model.newCache(tokens.length);
  await model.extend(cache, tokens.slice(0, -1));
  const last = await model.extend(cache, tokens.slice(-1));
  expect(relativeError(last, wanted.subarray(-model.spec.vocabSize))).toBeLessThan(tolerance);
});

async function tokensOf(folder: string): Promise<number[]> {
  await using file = await SafetensorsFile.open(join(folder, 'golden.safetensors'));
  return [...new Int32Array((await file.read('tokens')).slice().buffer)];
}
