import { execFile } from 'node:child_process';
import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { openCheckpoint } from '../../lib/checkpoint/checkpoint.ts';
import { convertCalibrated } from '../../lib/conversion/calibrated/convert.ts';
import { convertCheckpoint } from '../../lib/conversion/convert.ts';
import { type Device, openDevice } from '../../lib/device.ts';
import { Model } from '../../lib/model/model.ts';
import { relativeError } from '../support/reference.ts';

// What the real transformers makes of our output. Runs where it is installed: set MOLAE_PYTHON to a Python that has
// torch and transformers 5, or have it as python3.
const run = promisify(execFile);
const python = process.env.MOLAE_PYTHON ?? 'python3';
const version = await run(python, ['-c', 'import torch, transformers; print(transformers.__version__)']).then(
  ({ stdout }) => stdout.trim(),
  () => undefined,
);
const isThere = version !== undefined && Number(version.split('.')[0]) >= 5;
if (!isThere)
  console.log(
    `interop with transformers: skipped, ${python} has ${version ?? 'no torch and transformers'} (MOLAE_PYTHON)`,
  );

interface Distances {
  readonly latent_dense: number;
  readonly dense_products: number;
  readonly change: number;
  readonly latent_logits: readonly number[];
}

const here = (path: string) => fileURLToPath(new URL(path, import.meta.url));
const families = here('../fixtures/families');
const tokens = Array.from({ length: 24 }, (_, i) => (i * 13) % 64);

describe.skipIf(!isThere)(`transformers ${version}`, () => {
  let device: Device;
  let root: string;
  beforeAll(async () => {
    device = await openDevice('cpu');
    root = await mkdtemp(join(tmpdir(), 'molae-interop-'));
  });
  afterAll(async () => {
    device.dispose();
    await rm(root, { recursive: true });
  });

  test('loads the original, the dense and (by trust_remote_code) the latent format of every family, and computes what we do', async () => {
    const jobs = [];
    for (const [index, name] of (await readdir(families)).entries()) {
      const original = join(families, name);
      const [latent, dense] = [join(root, `${name}_latent`), join(root, `${name}_dense`)];
      const options = { groupSize: 4, latentSize: 16, sharedGateUp: index % 2 === 1, device };
      await convertCheckpoint(original, latent, { ...options, withPython: true });
      await convertCheckpoint(original, dense, { ...options, format: 'dense' });
      jobs.push({ name, original, latent, dense, tokens });
    }
    const list = join(root, 'jobs.json');
    await writeFile(list, JSON.stringify(jobs));
    const env = { ...process.env, HF_HOME: join(root, 'cache'), HF_HUB_OFFLINE: '1' };
    const { stdout } = await run(python, [here('./interop.py'), list], { env, maxBuffer: 1e8 });
    const results = JSON.parse(stdout.trim().split('\n').at(-1) as string) as Record<string, Distances>;
    let compared = 0;
    for (const { name, latent } of jobs) {
      const { latent_dense, dense_products, change, latent_logits } = results[name] as Distances;
      expect(latent_dense, name).toBeLessThan(1e-5);
      // bf16 weights, and random models pass on what they lose.
      expect(dense_products, name).toBeLessThan(2e-2);
      expect(change, name).toBeGreaterThan(0.1);
      await using checkpoint = await openCheckpoint(latent);
      if (checkpoint.family.decoder === undefined) continue;
      const model = await Model.open(latent, { device });
      try {
        using logits = await model.forward(tokens);
        const last = (await logits.toFloat32()).slice(-latent_logits.length);
        expect(relativeError(last, latent_logits), name).toBeLessThan(1e-3);
        compared++;
      } finally {
        await model.close();
      }
    }
    expect(compared).toBeGreaterThan(0);
  }, 300_000);

  test('loads a checkpoint of which only some operators are latent', async () => {
    const jobs = [];
    for (const [name, operators] of [
      ['mixtral', ['down']],
      ['granitemoe', ['gate', 'up']],
    ] as const) {
      const original = join(families, name);
      const latent = join(root, `${name}_${operators.join('_')}`);
      await convertCheckpoint(original, latent, {
        groupSize: 2,
        latentSize: 24,
        operators,
        withPython: true,
        device,
      });
      jobs.push({ name, original, dense: original, latent, tokens });
    }
    const list = join(root, 'partial.json');
    await writeFile(list, JSON.stringify(jobs));
    const env = { ...process.env, HF_HOME: join(root, 'cache'), HF_HUB_OFFLINE: '1' };
    const { stdout } = await run(python, [here('./interop.py'), list], { env, maxBuffer: 1e8 });
    const results = JSON.parse(stdout.trim().split('\n').at(-1) as string) as Record<string, Distances>;
    for (const { name } of jobs) expect(results[name]?.latent_dense, name).toBeLessThan(1e-5);
  }, 120_000);

  test('loads groups by affinity, which differ by layer', async () => {
    const original = join(families, 'qwen3_moe');
    const [latent, dense] = [join(root, 'grouped_latent'), join(root, 'grouped_dense')];
    const options = {
      calibration: Array.from({ length: 1024 }, (_, i) => (i * i * 7 + i) % 64),
      window: 32,
      groupSize: 4,
      latentSize: 16,
      grouping: 'affinity' as const,
      device,
    };
    await convertCalibrated(original, latent, { ...options, withPython: true });
    await convertCalibrated(original, dense, { ...options, format: 'dense' });
    await using checkpoint = await openCheckpoint(latent);
    const partitions = [...checkpoint.layers.values()].map(({ groups }) =>
      groups.map((group) => group.experts),
    );
    expect(new Set(partitions.map(String)).size).toBeGreaterThan(1);
    const list = join(root, 'grouped.json');
    await writeFile(list, JSON.stringify([{ name: 'grouped', original, dense, latent, tokens }]));
    const env = { ...process.env, HF_HOME: join(root, 'cache'), HF_HUB_OFFLINE: '1' };
    const { stdout } = await run(python, [here('./interop.py'), list], { env, maxBuffer: 1e8 });
    const { grouped } = JSON.parse(stdout.trim().split('\n').at(-1) as string) as Record<string, Distances>;
    expect(grouped?.latent_dense).toBeLessThan(1e-5);
    expect(grouped?.dense_products).toBeLessThan(2e-2);
    expect(grouped?.change).toBeGreaterThan(1e-3);
  }, 120_000);
});

test('python files are refused where transformers could not load them', async () => {
  const call = convertCheckpoint(join(families, 'mixtral'), '/nowhere', {
    groupSize: 4,
    latentSize: 16,
    format: 'dense',
    withPython: true,
  });
  await expect(call).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
});
