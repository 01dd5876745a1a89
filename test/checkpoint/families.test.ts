import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, describe, expect, test } from 'vitest';
import { openCheckpoint } from '../../lib/checkpoint/checkpoint.ts';
import { FAMILIES } from '../../lib/checkpoint/families/index.ts';
import { inspectCheckpoint } from '../../lib/checkpoint/inspect.ts';
import { SafetensorsFile } from '../../lib/checkpoint/safetensors/reader.ts';
import { convertCheckpoint } from '../../lib/conversion/convert.ts';
import { openDevice } from '../../lib/device.ts';
import { planConversion } from '../../lib/plan/plan-conversion.ts';
import { relativeError } from '../support/reference.ts';
import { outputFolder } from '../support/temporary.ts';

// Tiny checkpoints with golden values by transformers: see test/fixtures/make/families.py.
const root = fileURLToPath(new URL('../fixtures/families', import.meta.url));
const folders = (await readdir(root)).sort();
const device = await openDevice('cpu');
const temporary = await outputFolder('families');

afterAll(() => device.dispose());

/** Golden values of a folder: f32 and i32 by name. */
async function openGolden(folder: string) {
  const file = await SafetensorsFile.open(join(root, folder, 'golden.safetensors'));
  return {
    async floats(name: string) {
      return new Float32Array((await file.read(name)).slice().buffer);
    },
    async integers(name: string) {
      return new Int32Array((await file.read(name)).slice().buffer);
    },
    layers: [...file.tensors.keys()].flatMap((name) => /^layers\.(\d+)\.moe_input$/.exec(name)?.[1] ?? []),
    shape: (name: string) => file.tensors.get(name)?.shape as readonly number[],
    [Symbol.asyncDispose]: () => file.close(),
  };
}

test('there is a fixture for every family', async () => {
  const types = await Promise.all(
    folders.map(async (folder) => (await inspectCheckpoint(join(root, folder))).family),
  );
  expect(new Set(types)).toEqual(new Set(FAMILIES.keys()));
});

describe.each(folders)('%s', (folder) => {
  const path = join(root, folder);

  test('its MoE layers are those that transformers built, and give its router and output within 1e-5', async () => {
    await using golden = await openGolden(folder);
    await using checkpoint = await openCheckpoint(path);
    expect(checkpoint.spec.layers).toEqual(golden.layers.map(Number).sort((a, b) => a - b));
    const { topK } = checkpoint.spec;
    for (const layer of checkpoint.spec.layers) {
      const input = await golden.floats(`layers.${layer}.moe_input`);
      const x = device.tensor('f32', input, [...golden.shape(`layers.${layer}.moe_input`)]);
      const ids = await golden.integers(`layers.${layer}.router_ids`);
      const weights = await golden.floats(`layers.${layer}.router_weights`);
      using block = await checkpoint.loadMoeBlock(layer, { device, dtype: 'f32' });
      const routing = await block.route(x);
      // transformers leaves the order of a token's experts open.
      const sorted = (allIds: Int32Array, allWeights: Float32Array) =>
        Array.from({ length: allIds.length / topK }, (_, t) =>
          Array.from(
            { length: topK },
            (_, k) => [allIds[t * topK + k], allWeights[t * topK + k]] as const,
          ).sort((a, b) => (a[0] as number) - (b[0] as number)),
        ).flat();
      const ours = sorted(await routing.ids.read(), await routing.weights.read());
      const wanted = sorted(ids, weights);
      expect(ours.map(([id]) => id)).toEqual(wanted.map(([id]) => id));
      ours.forEach(([, weight], i) => {
        expect(Math.abs((weight as number) - (wanted[i]?.[1] as number))).toBeLessThan(2e-6);
      });
      using y = await block.forward(x);
      expect(
        relativeError(await y.toFloat32(), await golden.floats(`layers.${layer}.moe_output`)),
      ).toBeLessThan(1e-5);
    }
  });

  test('it inspects, plans and converts; a full-rank conversion gives the same output', async () => {
    const inspection = await inspectCheckpoint(path);
    expect(inspection).toMatchObject({ supported: true, unsupported: [], warnings: [], numExperts: 8 });
    await using golden = await openGolden(folder);
    await using checkpoint = await openCheckpoint(path);
    expect(inspection.runs).toBe(checkpoint.family.decoder !== undefined);
    expect(inspection.cannotRun === undefined).toBe(inspection.runs);
    await expect(checkpoint.loadExperts(0, { device: 'cpu' as never })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
    });
    const plan = planConversion(checkpoint.spec, { groupSize: 4, latentSize: 32 });
    expect(plan.expertParameters.dense).toBe(checkpoint.expertParameters);
    const layer = checkpoint.spec.layers.at(-1) as number;
    const x = device.tensor('f32', await golden.floats(`layers.${layer}.moe_input`), [24, 32]);
    // Every expert is found again, whatever the order in its group.
    const permuted = [
      [7, 0, 3, 5],
      [1, 6, 2, 4],
    ];
    for (const [format, groups] of [
      ['latent', { groupSize: 4 }],
      ['latent', { groups: permuted }],
      ['dense', { groups: permuted }],
    ] as const) {
      const output = join(temporary, `${folder}-${format}-${Object.keys(groups)[0]}`);
      const report = await convertCheckpoint(path, output, { ...groups, latentSize: 32, format, device });
      expect(report.layers.every((row) => row.relativeError < 1e-2)).toBe(true);
      await using converted = await openCheckpoint(output);
      expect(converted.format).toBe(format);
      expect(report.expertParameters.after).toBe(plan.expertParameters.latent);
      if (format === 'latent') expect(converted.expertParameters).toBe(plan.expertParameters.latent);
      using block = await converted.loadMoeBlock(layer, { device, dtype: 'f32' });
      using y = await block.forward(x);
      // bf16 factors: half a percent of each operator.
      expect(
        relativeError(await y.toFloat32(), await golden.floats(`layers.${layer}.moe_output`)),
      ).toBeLessThan(2e-2);
    }
  });
});
