import { expect } from 'vitest';
import type { CalibratedConversionReport } from '../../lib/conversion/calibrated/convert.ts';
import type { CalibratedConversionOptions } from '../../lib/conversion/calibrated/options.ts';
import type { Device } from '../../lib/device.ts';
import { DenseExperts } from '../../lib/experts.ts';
import type { Compressor, Method, MethodRequest } from '../../lib/methods/method.ts';
import type { CalibrationLayer } from '../../lib/model/calibration-layer.ts';
import type { Model } from '../../lib/model/model.ts';
import { MoeBlock } from '../../lib/moe-block.ts';
import { OPERATORS, type Operator } from '../../lib/operators.ts';
import type { RouterSpec } from '../../lib/routing.ts';
import type { Tensor } from '../../lib/tensor.ts';
import { Random, toTensor } from '../support/random.ts';
import { apply, type DenseExpert, type Matrix, matrix } from '../support/reference.ts';
import { specOf } from '../support/sizes.ts';

export interface LayerSizes {
  readonly n: number;
  readonly m: number;
  readonly experts: number;
  readonly topK: number;
  readonly tokens: number;
}

export const SIZES: LayerSizes = { n: 24, m: 16, experts: 6, topK: 2, tokens: 300 };

/** A MoE layer with random weights and inputs of correlated elements, both on a device and for plain loops. */
export interface TestLayer {
  readonly sizes: LayerSizes;
  readonly layer: CalibrationLayer;
  readonly experts: readonly DenseExpert[];
  readonly x: Matrix;
  readonly ids: Int32Array;
  readonly weights: Float32Array;
  /** Rows of x that an expert gets. */
  inputsOf(expert: number): Matrix;
}

export interface LayerOptions extends Partial<LayerSizes> {
  readonly dtype?: 'f32' | 'bf16';
  readonly spec?: Partial<RouterSpec>;
  /** Changes the experts before they are put on the device. */
  readonly change?: (experts: DenseExpert[]) => void;
  /** Changes the router's weight [N, n]. */
  readonly router?: (router: Matrix) => void;
}

export async function makeLayer(
  device: Device,
  seed: number,
  options: LayerOptions = {},
): Promise<TestLayer> {
  const sizes = { ...SIZES, ...options };
  const { n, m, experts: count, topK, tokens } = sizes;
  const { dtype = 'f32' } = options;
  const random = new Random(seed);
  const experts = Array.from({ length: count }, () => ({
    gate: random.matrix(m, n, 0.3, dtype),
    up: random.matrix(m, n, 0.3, dtype),
    down: random.matrix(n, m, 0.3, dtype),
  }));
  options.change?.(experts);
  const x = correlated(random, tokens, n);
  const router = random.matrix(count, n);
  options.router?.(router);
  const of = (operator: Operator) => experts.map((expert) => toTensor(device, dtype, expert[operator]));
  const block = new MoeBlock({
    router: toTensor(device, 'f32', router),
    spec: { scoring: 'softmax', topK, renormalize: true, ...options.spec },
    experts: new DenseExperts({ gate: of('gate'), up: of('up'), down: of('down') }),
  });
  const inputs = toTensor(device, 'f32', x);
  const routing = await block.route(inputs);
  const [ids, weights] = [await routing.ids.read(), await routing.weights.read()];
  return {
    sizes,
    layer: { layer: 0, block, x: inputs, routing },
    experts,
    x,
    ids,
    weights,
    inputsOf: (expert) =>
      rowsOf(
        x,
        slotsOf(ids, expert).map((slot) => Math.floor(slot / topK)),
      ),
  };
}

/** Places of an expert among the choices of all tokens. */
export function slotsOf(ids: Int32Array, expert: number): number[] {
  return [...ids.entries()].filter(([, id]) => id === expert).map(([slot]) => slot);
}

export function rowsOf(x: Matrix, rows: readonly number[]): Matrix {
  return matrix(
    rows.length,
    x.cols,
    rows.flatMap((row) => [...x.data.subarray(row * x.cols, (row + 1) * x.cols)]),
  );
}

/** Elements that go together, and some that hardly vary. */
function correlated(random: Random, tokens: number, n: number): Matrix {
  const mixing = random.matrix(n, n);
  const x = matrix(tokens, n);
  for (let t = 0; t < tokens; t++) {
    const hidden = Float64Array.from({ length: n }, (_, i) => random.normal() / (1 + i / 2));
    x.data.set(apply(mixing, hidden).map(Math.fround), t * n);
  }
  return x;
}

/** A method at work on a test layer, which is all of the model that methods without a plan over layers need. */
export async function prepare(
  method: Method,
  { sizes, layer }: TestLayer,
  targetRatio: number,
): Promise<Compressor> {
  const request = requestFor(sizes, targetRatio, layer.block.spec);
  method.check(request);
  return method.prepare(request);
}

export function requestFor(
  sizes: LayerSizes,
  targetRatio: number,
  router: Partial<RouterSpec> = {},
): MethodRequest {
  const { n, m, experts, topK } = sizes;
  const plain = specOf(n, m, experts, topK, 1);
  const spec = { ...plain, router: { ...plain.router, ...router } };
  return { model: { checkpoint: { spec } } as unknown as Model, calibration: [], targetRatio };
}

/** All elements of the experts' matrices, in order. */
export async function elementsOf(experts: DenseExperts): Promise<Float64Array> {
  const parts: number[] = [];
  for (const operator of OPERATORS) {
    for (const tensor of experts[operator]) parts.push(...(await tensor.toFloat32()));
  }
  return Float64Array.from(parts);
}

export async function toMatrix(tensor: Tensor): Promise<Matrix> {
  return matrix(tensor.shape[0] as number, tensor.shape[1] as number, await tensor.toFloat32());
}

type Conversion = (
  options: Pick<CalibratedConversionOptions, 'signal' | 'onProgress' | 'onSurvey'>,
) => Promise<CalibratedConversionReport>;

/** Stops a conversion in the layer 2 of the test model, and goes on with another one, by default the same. */
export async function stopAndGoOn(
  convert: Conversion,
  goOn: Conversion = convert,
): Promise<{
  readonly report: CalibratedConversionReport;
  /** How many layers each of the two surveyed. */
  readonly surveyed: readonly [number, number];
}> {
  const surveyed: [number, number] = [0, 0];
  const controller = new AbortController();
  const stopped = convert({
    signal: controller.signal,
    onProgress({ layer }) {
      if (layer === 2) controller.abort();
    },
    onSurvey: () => surveyed[0]++,
  });
  await expect(stopped).rejects.toMatchObject({ code: 'ABORTED' });
  const report = await goOn({ onSurvey: () => surveyed[1]++ });
  return { report, surveyed };
}
