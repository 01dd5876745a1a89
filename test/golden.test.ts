import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Checkpoint, openCheckpoint } from '../lib/checkpoint/checkpoint.ts';
import { SafetensorsFile } from '../lib/checkpoint/safetensors/reader.ts';
import type { DenseExperts } from '../lib/experts.ts';
import { factorizeExperts } from '../lib/factorization/factorize.ts';
import { MoeBlock } from '../lib/moe-block.ts';
import { expertsTolerance, openTestDevice } from './support/device.ts';
import { fixture, TINY } from './support/fixtures.ts';
import { relativeError } from './support/reference.ts';

// Golden values by PyTorch in f32 on the bf16 weights: see test/fixtures/README.md.

const device = await openTestDevice();
let checkpoint: Checkpoint;
let golden: SafetensorsFile;

beforeAll(async () => {
  checkpoint = await openCheckpoint(TINY);
  golden = await SafetensorsFile.open(fixture('golden-tiny-qwen2-moe.safetensors'));
});

afterAll(async () => {
  await golden.close();
  await checkpoint.close();
  device.dispose();
});

async function values(name: string): Promise<Float32Array> {
  const bytes = await golden.read(name);
  return new Float32Array(bytes.slice().buffer);
}

async function goldenLayer(layer: number) {
  const input = await values(`layers.${layer}.moe_input`);
  return {
    x: device.tensor('f32', input, [192, 256]),
    logits: await values(`layers.${layer}.router_logits`),
    output: await values(`layers.${layer}.moe_output`),
  };
}

describe.each([0, 1, 2, 3])('layer %i of the trained checkpoint against PyTorch', (layer) => {
  test('the router logits and the dense forward match within 1e-5', async () => {
    const { x, logits, output } = await goldenLayer(layer);
    using block = await checkpoint.loadMoeBlock(layer, { device });
    using ours = await block.routerLogits(x);
    expect(relativeError(await ours.toFloat32(), logits)).toBeLessThan(1e-5);
    using y = await block.forward(x);
    expect(relativeError(await y.toFloat32(), output)).toBeLessThan(expertsTolerance(device, 1e-5));
  });

  test('forwardSync gives the same bits as forward', async () => {
    const { x } = await goldenLayer(layer);
    using block = await checkpoint.loadMoeBlock(layer, { device });
    const routing = await block.route(x);
    using y = await block.experts.forward(x, routing);
    using z = block.experts.forwardSync(x, routing);
    expect(z.readSync()).toEqual(y.readSync());
  });

  test.each([
    ['f32', 1e-4],
    ['bf16', 1e-2],
  ] as const)(
    'the latent forward with r = min(n, k·m) and %s factors matches within %f',
    async (dtype, bound) => {
      const { x, output } = await goldenLayer(layer);
      using block = await checkpoint.loadMoeBlock(layer, { device });
      for (const groupSize of [2, 4, 16]) {
        const latentSize = Math.min(256, groupSize * 96);
        using latent = await factorizeExperts(block.experts as DenseExperts, {
          groupSize,
          latentSize,
          dtype,
        });
        const { router, spec } = block;
        using y = await new MoeBlock({ router, spec, experts: latent }).forward(x);
        expect(relativeError(await y.toFloat32(), output)).toBeLessThan(
          dtype === 'f32' ? bound : expertsTolerance(device, bound),
        );
      }
    },
  );

  test('a smaller latent space changes the output by what the weights lost, no more than tenfold', async () => {
    const { x, output } = await goldenLayer(layer);
    using block = await checkpoint.loadMoeBlock(layer, { device });
    using latent = await factorizeExperts(block.experts as DenseExperts, { groupSize: 4, latentSize: 160 });
    const { router, spec } = block;
    using y = await new MoeBlock({ router, spec, experts: latent }).forward(x);
    const error = relativeError(await y.toFloat32(), output);
    expect(error).toBeGreaterThan(1e-3);
    expect(error).toBeLessThan(10 * Math.max(...latent.report.map((row) => row.relativeError)));
  });
});
