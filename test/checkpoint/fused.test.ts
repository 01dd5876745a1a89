import { copyFile, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, describe, expect, test } from 'vitest';
import { openCheckpoint } from '../../lib/checkpoint/checkpoint.ts';
import { inspectCheckpoint } from '../../lib/checkpoint/inspect.ts';
import { SafetensorsWriter, type TensorDeclaration } from '../../lib/checkpoint/safetensors/writer.ts';
import { convertCheckpoint } from '../../lib/conversion/convert.ts';
import { openDevice } from '../../lib/device.ts';
import { OPERATORS } from '../../lib/operators.ts';
import { molaeError } from '../support/errors.ts';
import { temporaryFolder } from '../support/temporary.ts';

const device = await openDevice('cpu');
afterAll(() => device.dispose());

const [N, n, m] = [8, 32, 12];
const fixture = (family: string) => fileURLToPath(new URL(`../fixtures/families/${family}`, import.meta.url));

/** A copy of a fixture with the experts of a layer in two tensors, as transformers 5 has them in memory. */
async function fuse(family: string): Promise<string> {
  const folder = await temporaryFolder();
  await copyFile(join(fixture(family), 'config.json'), join(folder, 'config.json'));
  await using source = await openCheckpoint(fixture(family));
  const tensors: (TensorDeclaration & { bytes: Uint8Array })[] = [];
  for (const [name, { dtype, shape }] of source.shards.tensors) {
    if (source.expertTensors.has(name)) continue;
    tensors.push({ name, dtype, shape, bytes: await source.shards.read(name) });
  }
  for (const layer of source.spec.layers) {
    const prefix = `${source.family.expertsPrefix(layer)}.experts`;
    const gateUp: Uint8Array[] = [];
    const down: Uint8Array[] = [];
    for (let expert = 0; expert < N; expert++) {
      gateUp.push(
        await source.readExpert(layer, expert, 'gate'),
        await source.readExpert(layer, expert, 'up'),
      );
      down.push(await source.readExpert(layer, expert, 'down'));
    }
    const add = (name: string, shape: number[], parts: Uint8Array[]) =>
      tensors.push({ name: `${prefix}.${name}`, dtype: 'BF16', shape, bytes: Buffer.concat(parts) });
    add('gate_up_proj', [N, 2 * m, n], gateUp);
    add('down_proj', [N, n, m], down);
  }
  const writer = await SafetensorsWriter.create(join(folder, 'model.safetensors'), tensors);
  for (const { name, bytes } of tensors) await writer.write(name, bytes);
  await writer.finish();
  return folder;
}

describe.each(['mixtral', 'deepseek_v3', 'qwen2_moe'])('%s with fused experts', (family) => {
  test('has the same experts, sizes and factors as with a tensor for each matrix', async () => {
    const fused = await fuse(family);
    await using a = await openCheckpoint(fused);
    await using b = await openCheckpoint(fixture(family));
    expect(a.spec).toEqual(b.spec);
    expect(a.expertParameters).toBe(b.expertParameters);
    expect(await inspectCheckpoint(fused)).toMatchObject({ supported: true, family });
    const layer = a.spec.layers[0] as number;
    for (const operator of OPERATORS)
      expect(await a.readExpert(layer, 5, operator)).toEqual(await b.readExpert(layer, 5, operator));

    const folder = await temporaryFolder();
    const options = { groupSize: 4, latentSize: 8, device } as const;
    const one = await convertCheckpoint(fused, join(folder, 'a'), options);
    const two = await convertCheckpoint(fixture(family), join(folder, 'b'), options);
    expect(one.layers).toEqual(two.layers);
    const layerFile = async (name: string) => {
      await using converted = await openCheckpoint(join(folder, name));
      const file = converted.shards.tensor(`${a.family.expertsPrefix(layer)}.latent_experts.0.gate_a`).shard;
      return (await readFile(join(folder, name, file))).toString('hex');
    };
    expect(await layerFile('a')).toBe(await layerFile('b'));
  });

  test('converts back into its own layout, and some operators alone where a tensor holds no other', async () => {
    const fused = await fuse(family);
    const folder = await temporaryFolder();
    await convertCheckpoint(fused, join(folder, 'dense'), {
      groupSize: 4,
      latentSize: 8,
      device,
      format: 'dense',
    });
    await using dense = await openCheckpoint(join(folder, 'dense'));
    await using original = await openCheckpoint(fused);
    expect([...dense.shards.tensors.keys()].sort()).toEqual([...original.shards.tensors.keys()].sort());

    await convertCheckpoint(fused, join(folder, 'down'), {
      groupSize: 4,
      latentSize: 8,
      device,
      operators: ['down'],
    });
    await using down = await openCheckpoint(join(folder, 'down'));
    const layer = down.spec.layers[0] as number;
    expect(down.layer(layer).latentOperators).toEqual(['down']);
    expect(await down.readExpert(layer, 3, 'up')).toEqual(await original.readExpert(layer, 3, 'up'));
    const alone = convertCheckpoint(fused, join(folder, 'up'), {
      groupSize: 4,
      latentSize: 8,
      device,
      operators: ['up'],
    });
    await expect(alone).rejects.toMatchObject(molaeError('UNSUPPORTED_CHECKPOINT', 'gate_up_proj'));
  });
});

test('a fused tensor of another shape, or beside single ones, is refused', async () => {
  const folder = await fuse('mixtral');
  const config = JSON.parse(await readFile(join(folder, 'config.json'), 'utf8'));
  await writeFile(join(folder, 'config.json'), JSON.stringify({ ...config, intermediate_size: 24 }));
  await expect(openCheckpoint(folder)).rejects.toMatchObject(
    molaeError('BAD_CHECKPOINT', 'experts.gate_up_proj', '[8, 24, 32]', '[8, 48, 32]'),
  );
});
