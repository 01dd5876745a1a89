import { cp, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeEach, describe, expect, test } from 'vitest';
import { openCheckpoint } from '../../lib/checkpoint/checkpoint.ts';
import { inspectCheckpoint } from '../../lib/checkpoint/inspect.ts';
import { convertCalibrated } from '../../lib/conversion/calibrated/convert.ts';
import { type ConvertOptions, convertCheckpoint } from '../../lib/conversion/convert.ts';
import { openDevice } from '../../lib/device.ts';
import type { BlockDType } from '../../lib/dtype.ts';
import type { DenseExperts, LatentExperts, LatentOperator } from '../../lib/experts.ts';
import { factorizeExperts } from '../../lib/factorization/factorize.ts';
import { Model } from '../../lib/model/model.ts';
import { perplexity } from '../../lib/model/perplexity.ts';
import { Tokenizer } from '../../lib/model/tokenizer.ts';
import { OPERATORS, type Operator } from '../../lib/operators.ts';
import { quantizeExperts } from '../../lib/quantize.ts';
import type { Tensor } from '../../lib/tensor.ts';
import { fixture, TINY } from '../support/fixtures.ts';
import { relativeError } from '../support/reference.ts';
import { freshPaths, outputFolder } from '../support/temporary.ts';

const source = TINY;
const device = await openDevice('cpu');
const freshPath = freshPaths(await outputFolder('quantized'));
let output: string;

beforeEach(() => {
  output = freshPath();
});
afterAll(() => device.dispose());

const convert = (options: Partial<ConvertOptions> = {}) =>
  convertCheckpoint(source, output, { groupSize: 4, latentSize: 40, device, ...options });

const [n, m, numExperts, layers] = [256, 96, 16, 4] as const;
const bitsOf = (dtype: BlockDType) => (dtype === 'q8' ? 8.5 : 4.5);

/** W ≈ A·B of all experts of a layer, multiplied in f64, against the originals. */
async function errorOf(latent: LatentExperts, dense: DenseExperts, operator: Operator): Promise<number> {
  const { a, b } = latent[operator] as LatentOperator;
  const products: number[] = [];
  const wanted: number[] = [];
  for (const [group, members] of latent.groups.entries()) {
    const basis = await (b[group] as Tensor).toFloat32();
    for (const [index, expert] of members.entries()) {
      using slice = (a[group] as Tensor).slice(index);
      const own = await slice.toFloat32();
      const [left, right, rows, inner, cols] =
        operator === 'down' ? [basis, own, n, own.length / m, m] : [own, basis, m, basis.length / n, n];
      for (let i = 0; i < rows; i++) {
        for (let j = 0; j < cols; j++) {
          let sum = 0;
          for (let k = 0; k < inner; k++)
            sum += (left[i * inner + k] as number) * (right[k * cols + j] as number);
          products.push(sum);
        }
      }
      wanted.push(...(await (dense[operator][expert] as Tensor).toFloat32()));
    }
  }
  return relativeError(products, wanted);
}

describe.each<BlockDType>(['q8', 'q4'])('factors in blocks of %s', (quantize) => {
  test('take their bits and no more, count as the parameters they stand for, and are named in config.json', async () => {
    const report = await convert({ quantize, latentSize: 64 });
    expect(report).toMatchObject({ quantization: quantize, latentSizes: { gate: 64, up: 64, down: 64 } });
    const factors = layers * 3 * (numExperts * m * 64 + (numExperts / 4) * n * 64);
    expect(report.expertParameters.after).toBe(factors);
    await using converted = await openCheckpoint(output);
    expect(converted.molae?.quantization).toBe(quantize);
    expect(converted.expertParameters).toBe(factors);
    expect(converted.expertBytes).toBe((factors * bitsOf(quantize)) / 8);
    expect(converted.parameters).toBe(report.parameters.after);
    expect(converted.byteLength).toBe(report.bytes.after);
    expect(converted.layer(0).dtypes).toEqual({ gate: quantize, up: quantize, down: quantize });
    expect(await inspectCheckpoint(output)).toMatchObject({
      supported: true,
      expertParameters: factors,
      latent: { quantization: quantize, latentSizes: { gate: [64], up: [64], down: [64] } },
    });
    const config = JSON.parse(await readFile(join(output, 'config.json'), 'utf8'));
    expect(config.molae.quantization).toBe(quantize);
  });

  test('load as what factorizing the layer into blocks gives, with the error that the report says', async () => {
    // 40 is no multiple of 32: rows end in blocks that are filled up.
    const report = await convert({ quantize });
    await using original = await openCheckpoint(source);
    await using converted = await openCheckpoint(output);
    using dense = (await original.loadExperts(2, { device })) as DenseExperts;
    using got = (await converted.loadExperts(2, { device })) as LatentExperts;
    using wanted = await factorizeExperts(dense, { groupSize: 4, latentSize: 40, dtype: quantize });
    for (const operator of OPERATORS) {
      for (const side of ['a', 'b'] as const) {
        for (const [g, tensor] of (wanted[operator] as LatentOperator)[side].entries()) {
          const loaded = (got[operator] as LatentOperator)[side][g] as Tensor;
          expect(loaded.shape).toEqual(tensor.shape);
          expect(
            Buffer.compare((await loaded.read()) as Uint8Array, (await tensor.read()) as Uint8Array),
          ).toBe(0);
        }
      }
      const rows = report.layers.filter((row) => row.layer === 2 && row.operator === operator);
      const reported = Math.sqrt(rows.reduce((sum, { relativeError: e }) => sum + e * e, 0) / rows.length);
      const measured = await errorOf(got, dense, operator);
      // Groups have nearly, not exactly, the same norm.
      expect(measured).toBeGreaterThan(0.97 * reported);
      expect(measured).toBeLessThan(1.03 * reported);
      for (const { relativeError: e, optimalRelativeError } of rows)
        expect(e).toBeGreaterThan(optimalRelativeError);
    }
  });

  test('fitted to rounded bases they lose less than factors that are rounded afterwards', async () => {
    await using original = await openCheckpoint(source);
    using dense = (await original.loadExperts(1, { device })) as DenseExperts;
    // With all directions kept, rounding is all that is lost.
    const options = { groupSize: 4, latentSize: n } as const;
    using exact = await factorizeExperts(dense, { ...options, dtype: 'f32' });
    using rounded = await quantizeExperts(exact, quantize);
    using fitted = await factorizeExperts(dense, { ...options, dtype: quantize });
    for (const operator of OPERATORS) {
      const [least, most] = [await errorOf(fitted, dense, operator), await errorOf(rounded, dense, operator)];
      expect(least).toBeLessThan(0.85 * most);
    }
  });

  test('cost little more perplexity than the factors themselves, calibrated and with a shared basis too', async () => {
    const text = await readFile(fixture('moby-dick.txt'), 'utf8');
    const ids = (await Tokenizer.open(source)).encode(text);
    const options = {
      calibration: ids.slice(0, 2560),
      groupSize: 4,
      latentSize: 64,
      sharedGateUp: true,
      device,
    };
    const perplexityOf = async (path: string) => {
      await using model = await Model.open(path, { device });
      return (await perplexity(model, ids.slice(2560, 3584))).perplexity;
    };
    await convertCalibrated(source, output, { ...options, quantize });
    const plain = freshPath();
    await convertCalibrated(source, plain, options);
    const ratio = (await perplexityOf(output)) / (await perplexityOf(plain));
    expect(Math.abs(ratio - 1)).toBeLessThan(quantize === 'q8' ? 0.002 : 0.03);
    expect(ratio).not.toBe(1);
  });
});

describe('bad input', () => {
  test.each<[string, Partial<ConvertOptions>, RegExp]>([
    ['other blocks', { quantize: 'q5' as BlockDType }, /q8 or q4 for quantize/],
    ['dense output', { quantize: 'q8', format: 'dense' }, /quantize is for the latent format/],
    [
      'modules for transformers',
      { quantize: 'q8', withPython: true },
      /withPython is not for quantized factors/,
    ],
  ])('%s: refused before any work', async (_, options, message) => {
    await expect(convert(options)).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringMatching(message),
    });
  });

  test('a stopped run is not resumed with other blocks', async () => {
    const stop = new AbortController();
    await expect(
      convert({
        quantize: 'q8',
        signal: stop.signal,
        onProgress: ({ layer }) => layer === 2 && stop.abort(),
      }),
    ).rejects.toMatchObject({ code: 'ABORTED' });
    const { resumedFiles } = await convert({ quantize: 'q4', force: true });
    expect(resumedFiles).toBe(0);
  });

  test.each<[string, (config: { molae: Record<string, unknown> }) => void, string, RegExp]>([
    [
      'unknown blocks',
      (c) => Object.assign(c.molae, { quantization: 'q2' }),
      'UNSUPPORTED_CHECKPOINT',
      /"q2".*q8 and q4/,
    ],
    [
      'the wrong blocks',
      (c) => Object.assign(c.molae, { quantization: 'q4' }),
      'BAD_CHECKPOINT',
      /gate_a.*shape/,
    ],
    [
      'blocks that config.json does not tell of',
      (c) => Reflect.deleteProperty(c.molae, 'quantization'),
      'BAD_CHECKPOINT',
      /gate_a.*shape/,
    ],
  ])('%s: named', async (_, change, code, message) => {
    await convert({ quantize: 'q8' });
    const broken = freshPath();
    await cp(output, broken, { recursive: true });
    const config = JSON.parse(await readFile(join(broken, 'config.json'), 'utf8'));
    change(config);
    await writeFile(join(broken, 'config.json'), JSON.stringify(config));
    await expect(openCheckpoint(broken)).rejects.toMatchObject({
      code,
      message: expect.stringMatching(message),
    });
  });
});

test('a model with its experts rounded as it is loaded is one with its layers quantized, dense and latent', async () => {
  const ids = (await Tokenizer.open(source)).encode(
    'Call me Ishmael. Some years ago, never mind how long precisely',
  );
  await convert({ quantize: 'q8' });
  const score = async (path: string, quantize?: BlockDType) => {
    await using model = await Model.open(path, { device, quantize });
    return (await perplexity(model, ids)).perplexity;
  };
  const [exact, q8, q4] = [await score(source), await score(source, 'q8'), await score(source, 'q4')];
  expect(Math.abs(q8 / exact - 1)).toBeLessThan(0.02);
  expect(Math.abs(q4 / exact - 1)).toBeLessThan(0.2);
  expect(new Set([exact, q8, q4]).size).toBe(3);
  expect(await score(output, 'q8')).toBe(await score(output));
  await expect(Model.open(source, { device, quantize: 'q6' as BlockDType })).rejects.toThrow(
    /q8 or q4 for quantize/,
  );
});

test('a layer rounded as it is loaded takes the memory of its blocks: the weights they were made of are gone', async () => {
  await using original = await openCheckpoint(source);
  using own = await openDevice('cpu', { threads: 3 }); // not that of the other tests, whose tensors the collector may free
  using exact = (await original.loadExperts(1, { device: own })) as DenseExperts;
  const before = own.memoryUsage().tensors;
  using rounded = (await original.loadExperts(1, { device: own, dtype: 'q4' })) as DenseExperts;
  const bytesOf = (experts: DenseExperts) => {
    const { gate, up, down, gateLogit } = experts.sharedExpert ?? {};
    const routed = OPERATORS.flatMap((operator) => experts[operator] as Tensor[]);
    const tensors = [...routed, gate, up, down, gateLogit].filter((tensor) => tensor !== undefined);
    return tensors.reduce((sum, tensor) => sum + tensor.byteLength, 0);
  };
  expect(before).toBe(bytesOf(exact));
  expect(own.memoryUsage().tensors - before).toBe(bytesOf(rounded));
});
