import fc from 'fast-check';
import { afterAll, describe, expect, test } from 'vitest';
import { DenseExperts, type LatentOperator } from '../../lib/experts.ts';
import {
  type CalibratedOptions,
  calibratedSpectra,
  factorizeCalibrated,
} from '../../lib/factorization/calibrated.ts';
import { groupBases, type LayerInputs } from '../../lib/factorization/calibrated-group.ts';
import { type FactorizeOptions, factorizeExperts } from '../../lib/factorization/factorize.ts';
import type { Operator } from '../../lib/operators.ts';
import type { Tensor } from '../../lib/tensor.ts';
import { openOwnDevice, openTestDevice } from '../support/device.ts';
import { Random, toTensor } from '../support/random.ts';

const device = await openTestDevice();
afterAll(() => device.dispose());
// The steps of calibration are not there on a GPU yet.
const onCpu = describe.skipIf(device.kind !== 'cpu');

interface Sizes {
  readonly n: number;
  readonly m: number;
  readonly experts: number;
  readonly topK: number;
  readonly tokens: number;
}

const SIZES: Sizes = { n: 24, m: 10, experts: 4, topK: 2, tokens: 200 };

function layer(seed: number, { n, m, experts }: Sizes, on = device): DenseExperts {
  const random = new Random(seed);
  const draw = (rows: number, cols: number) =>
    Array.from({ length: experts }, () => toTensor(on, 'f32', random.matrix(rows, cols, 0.3, 'f32')));
  return new DenseExperts({ gate: draw(m, n), up: draw(m, n), down: draw(n, m) });
}

/** Inputs that vary much more in some directions than in others, sent to random experts out of `allowed`. */
function inputs(
  seed: number,
  { n, experts, topK, tokens }: Sizes,
  allowed = experts,
  on = device,
): LayerInputs {
  const random = new Random(seed + 1000);
  const noise = random.matrix(tokens, n, 1, 'f32').data;
  const x = Float32Array.from(noise, (value, i) => value * 4 ** -((i % n) / 4));
  const picks = random.matrix(tokens, allowed, 1, 'f32').data;
  const ids = new Int32Array(tokens * topK);
  for (let t = 0; t < tokens; t++) {
    const order = Array.from({ length: allowed }, (_, i) => i).sort(
      (a, b) => (picks[t * allowed + b] as number) - (picks[t * allowed + a] as number),
    );
    ids.set(order.slice(0, topK), t * topK);
  }
  const weights = random.matrix(tokens, topK, 1, 'f32').data;
  return {
    x: on.tensor('f32', x, [tokens, n]) as Tensor<'f32'>,
    routing: {
      ids: on.tensor('i32', ids, [tokens, topK]),
      weights: on.tensor(
        'f32',
        Float32Array.from(weights, (w) => 0.1 + Math.abs(w)),
        [tokens, topK],
      ),
    },
  };
}

/** The relative error of a layer's output on its inputs. */
async function outputError(
  original: DenseExperts,
  converted: DenseExperts | Awaited<ReturnType<typeof factorizeCalibrated>>,
  { x, routing }: LayerInputs,
): Promise<number> {
  const wanted = (await (await original.forward(x, routing)).read()) as Float32Array;
  const actual = (await (await converted.forward(x, routing)).read()) as Float32Array;
  let lost = 0;
  let whole = 0;
  for (const [i, y] of wanted.entries()) {
    lost += (y - (actual[i] as number)) ** 2;
    whole += y ** 2;
  }
  return Math.sqrt(lost / whole);
}

onCpu('factorizeCalibrated', () => {
  test('loses less of the outputs than weights alone say, on the calibration inputs and on fresh ones', async () => {
    const sizes = { ...SIZES, tokens: 800 };
    for (const seed of [1, 2, 3]) {
      using dense = layer(seed, sizes);
      const seen = inputs(seed, sizes);
      const fresh = inputs(seed + 50, sizes);
      const options = { groupSize: 2, latentSize: 10 };
      using plain = await factorizeExperts(dense, options);
      using calibrated = await factorizeCalibrated(dense, seen, options);
      for (const tokens of [seen, fresh]) {
        expect(await outputError(dense, calibrated, tokens)).toBeLessThan(
          0.7 * (await outputError(dense, plain, tokens)),
        );
      }
    }
  });

  test('refitted factors lose no more of gate and up than those fitted to the group alone, per group', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.integer({ min: 0, max: 1e6 }),
        fc.integer({ min: 2, max: 12 }),
        async (seed, latentSize) => {
          using dense = layer(seed, SIZES);
          const seen = inputs(seed, SIZES);
          const options = { groupSize: 2, latentSize, shrinkage: 0 };
          using refitted = await factorizeCalibrated(dense, seen, options);
          using shared = await factorizeCalibrated(dense, seen, { ...options, refit: false });
          for (const [i, { operator, relativeError }] of refitted.report.entries()) {
            if (operator === 'down') continue;
            expect(relativeError).toBeLessThanOrEqual(
              (shared.report[i]?.relativeError as number) * 1.001 + 1e-6,
            );
          }
        },
      ),
      { numRuns: 15 },
    );
  });

  test('with one group of all experts, down alone reaches the optimum of its spectrum', async () => {
    for (const latentSize of [3, 9, 17]) {
      using dense = layer(latentSize, SIZES);
      const seen = inputs(latentSize, SIZES);
      using converted = await factorizeCalibrated(dense, seen, {
        groupSize: SIZES.experts,
        latentSize: { down: latentSize },
      });
      const [report] = converted.report;
      const reached = await outputError(dense, converted, seen);
      expect(Math.abs(reached - (report?.optimalRelativeError as number))).toBeLessThan(1e-4);
    }
  });

  test('full latent spaces change nothing', async () => {
    using dense = layer(5, SIZES);
    const seen = inputs(5, SIZES);
    using converted = await factorizeCalibrated(dense, seen, { groupSize: 4, latentSize: SIZES.n });
    expect(await outputError(dense, converted, seen)).toBeLessThan(1e-4);
    for (const { exact, outputError: lost } of converted.report) {
      expect(exact).toBe(true);
      expect(lost).toBeLessThan(1e-4);
    }
  });

  test('what is reported as lost of the output is what the layer loses, where no group shares a token', async () => {
    const sizes = { ...SIZES, topK: 1, tokens: 300 };
    using dense = layer(6, sizes);
    const seen = inputs(6, sizes);
    using converted = await factorizeCalibrated(dense, seen, { groupSize: 4, latentSize: 8 });
    expect(converted.report[0]?.outputError).toBeCloseTo(await outputError(dense, converted, seen), 4);
  });

  test('experts and whole groups that no token reaches still get finite factors', async () => {
    for (const allowed of [2, 3]) {
      using dense = layer(allowed, SIZES);
      const seen = inputs(allowed, SIZES, allowed);
      using converted = await factorizeCalibrated(dense, seen, { groupSize: 2, latentSize: 8 });
      const others = inputs(allowed + 9, SIZES);
      expect(await outputError(dense, converted, others)).toBeLessThan(1);
      for (const { relativeError } of converted.report) expect(Number.isFinite(relativeError)).toBe(true);
    }
  });

  test('one latent space for gate and up serves both', async () => {
    using dense = layer(7, SIZES);
    const seen = inputs(7, SIZES);
    using converted = await factorizeCalibrated(dense, seen, {
      groupSize: 2,
      latentSize: 18,
      sharedGateUp: true,
    });
    const { gate, up } = converted;
    expect('b' in gate && 'b' in up && gate.b[0] === up.b[0]).toBe(true);
    expect(await outputError(dense, converted, seen)).toBeLessThan(0.1);
  });

  test('latent sizes may differ between operators and groups, and operators may stay dense', async () => {
    using dense = layer(8, SIZES);
    const seen = inputs(8, SIZES);
    using converted = await factorizeCalibrated(dense, seen, {
      groupSize: 2,
      latentSize: { gate: [4, 12], down: 9 },
    });
    expect(converted.report.map(({ operator, group, latentSize }) => [operator, group, latentSize])).toEqual([
      ['gate', 0, 4],
      ['down', 0, 9],
      ['gate', 1, 12],
      ['down', 1, 9],
    ]);
    expect(await outputError(dense, converted, seen)).toBeLessThan(0.5);
  });

  test('sums of squared output: spectra add up to what the operator contributes, and fall', async () => {
    using dense = layer(9, SIZES);
    const seen = inputs(9, SIZES);
    const spectra = await calibratedSpectra(dense, seen, { groupSize: 4 });
    const y = (await (await dense.forward(seen.x, seen.routing)).read()) as Float32Array;
    const energy = y.reduce((sum, value) => sum + value * value, 0);
    const down = spectra.find(({ operator }) => operator === 'down');
    expect((down?.values.reduce((sum, value) => sum + value, 0) as number) / energy).toBeCloseTo(1, 4);
    for (const { values } of spectra) {
      for (let i = 1; i < values.length; i++) expect(values[i]).toBeLessThanOrEqual(values[i - 1] as number);
    }
  });

  test.each([false, true])(
    'a basis alone has the bits of that with factors (sharedGateUp %s)',
    async (sharedGateUp) => {
      using dense = layer(3, SIZES);
      const seen = inputs(3, SIZES);
      const sizes = { gate: 6, up: sharedGateUp ? 6 : 4 };
      using latent = await factorizeCalibrated(dense, seen, {
        groupSize: 2,
        latentSize: sizes,
        sharedGateUp,
      });
      const source = {
        ...{ experts: dense, inputs: seen, group: 1, members: [2, 3] },
        sizes: (operator: Operator) => (operator === 'down' ? undefined : sizes[operator]),
      };
      const bases = await groupBases(source, { sharedGateUp }, () => {});
      expect(Object.keys(bases)).toEqual(['gate', 'up']);
      for (const operator of ['gate', 'up'] as const) {
        const { b } = latent[operator] as LatentOperator;
        expect(await bases[operator]?.read()).toEqual(await b[1]?.read());
      }
      for (const basis of Object.values(bases)) basis.dispose();
    },
  );

  test('operators mean what they mean without calibration', async () => {
    using dense = layer(3, SIZES);
    const seen = inputs(3, SIZES);
    const factored = async (options: CalibratedOptions) => {
      using latent = await factorizeCalibrated(dense, seen, { groupSize: 2, ...options });
      return [...new Set(latent.report.map(({ operator }) => operator))];
    };
    expect(await factored({ latentSize: 4, operators: ['down', 'gate'] })).toEqual(['gate', 'down']);
    expect(await factored({ latentSize: { up: [4, 5], down: 3 } })).toEqual(['up', 'down']);
    expect(await factored({ latentSize: { up: 4, down: 3 }, operators: ['up'] })).toEqual(['up']);
    for (const factorize of [
      (options: FactorizeOptions) => factorizeExperts(dense, options),
      (options: FactorizeOptions) => factorizeCalibrated(dense, seen, options),
    ]) {
      const groupSize = 2;
      await expect(factorize({ groupSize, latentSize: { up: 4 }, operators: ['gate'] })).rejects.toThrow(
        /integer from 1 to .* for latentSize of gate.* but received undefined/,
      );
      await expect(factorize({ groupSize, latentSize: {} })).rejects.toThrow(/a latent size for latentSize/);
    }
  });

  test('names the expert and the place of a NaN', async () => {
    const random = new Random(1);
    const { n, m, experts } = SIZES;
    const draw = (rows: number, cols: number) =>
      Array.from({ length: experts }, () => random.matrix(rows, cols, 0.3, 'f32'));
    const up = draw(m, n);
    (up[3]?.data as Float64Array | number[])[n + 2] = Number.NaN;
    const tensors = (of: typeof up) => of.map((w) => toTensor(device, 'f32', w));
    using dense = new DenseExperts({ gate: tensors(draw(m, n)), up: tensors(up), down: tensors(draw(n, m)) });
    await expect(
      factorizeCalibrated(dense, inputs(1, SIZES), { groupSize: 2, latentSize: 4 }),
    ).rejects.toMatchObject({
      code: 'NON_FINITE',
      message: 'The up matrix of expert 3 has NaN or infinity at [1, 2]',
    });
  });

  test('refuses sizes that do not fit, inputs of another layer and a routing of other tokens', async () => {
    using dense = layer(2, SIZES);
    const seen = inputs(2, SIZES);
    const refused = (options: object, from: LayerInputs = seen) =>
      expect(factorizeCalibrated(dense, from, { groupSize: 2, latentSize: 4, ...options })).rejects;
    await refused({ latentSize: 21 }).toMatchObject({ code: 'INVALID_ARGUMENT' });
    await refused({ latentSize: { gate: [4] } }).toMatchObject({ code: 'INVALID_ARGUMENT' });
    await refused({ latentSize: {} }).toMatchObject({ code: 'INVALID_ARGUMENT' });
    await refused({ latentSize: { gate: 4, up: 5 }, sharedGateUp: true }).toMatchObject({
      code: 'INVALID_ARGUMENT',
    });
    await refused({ latentSize: { down: 4 }, sharedGateUp: true }).toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining('both gate and up'),
    });
    await refused({ groupSize: 3 }).toMatchObject({ code: 'INVALID_ARGUMENT' });
    await refused({ shrinkage: -1 }).toMatchObject({ code: 'INVALID_ARGUMENT' });
    await refused({}, inputs(2, { ...SIZES, n: 20 })).toMatchObject({ code: 'SHAPE_MISMATCH' });
    const others = inputs(2, { ...SIZES, tokens: 10 });
    await refused({}, { x: seen.x, routing: others.routing }).toMatchObject({ code: 'SHAPE_MISMATCH' });
  });

  test.each([[[]], ['gate'], [null], [['gate', 'router']], [new Array(2 ** 32 - 1)]])(
    'refuses operators of a spectrum that are none',
    async (operators) => {
      using dense = layer(2, SIZES);
      const options = { groupSize: 2, operators: operators as never };
      await expect(calibratedSpectra(dense, inputs(2, SIZES), options)).rejects.toMatchObject({
        code: 'INVALID_ARGUMENT',
        message: expect.stringMatching(/some of gate, up, down for operators/),
      });
    },
  );

  test('an aborted call leaves no memory behind', async () => {
    using own = await openOwnDevice();
    using dense = layer(3, SIZES, own);
    const seen = inputs(3, SIZES, SIZES.experts, own);
    const before = own.memoryUsage().tensors;
    const controller = new AbortController();
    let steps = 0;
    const call = factorizeCalibrated(dense, seen, {
      groupSize: 2,
      latentSize: 6,
      signal: controller.signal,
      onProgress: () => {
        steps++;
        if (steps === 6) controller.abort();
      },
    });
    await expect(call).rejects.toMatchObject({ code: 'ABORTED' });
    expect(own.memoryUsage().tensors).toBe(before);
  });
});
