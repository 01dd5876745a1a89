import fc from 'fast-check';
import { afterAll, describe, expect, test } from 'vitest';
import { type Activation, DenseExperts, LatentExperts, type LatentOperator } from '../lib/experts.ts';
import type { Tensor } from '../lib/tensor.ts';
import { openTestDevice } from './support/device.ts';
import { poisoned, Random, toTensor } from './support/random.ts';
import {
  type DenseExpert,
  errorOfSums,
  type Matrix,
  matrix,
  moeForward,
  multiply,
} from './support/reference.ts';

const device = await openTestDevice();
afterAll(() => device.dispose());

type WeightDType = 'f32' | 'f64' | 'bf16' | 'f16';

/** What f32 (f64) arithmetic on exactly given weights may lose; a GPU rounds the inputs of its tensor cores to halves. */
const bound = (dtype: WeightDType) =>
  dtype === 'f64' ? 1e-13 : device.kind === 'cuda' && dtype !== 'f32' ? 5e-2 : 1e-5;

function routingTensors(ids: Int32Array, weights: Float32Array, tokens: number, topK: number) {
  return {
    ids: device.tensor('i32', ids, [tokens, topK]),
    weights: device.tensor('f32', weights, [tokens, topK]),
  };
}

function randomExpert(random: Random, n: number, m: number, dtype: WeightDType): DenseExpert {
  return {
    gate: random.matrix(m, n, 1 / Math.sqrt(n), dtype),
    up: random.matrix(m, n, 1 / Math.sqrt(n), dtype),
    down: random.matrix(n, m, 1 / Math.sqrt(m), dtype),
  };
}

/** Of an element: 95% of the layers below put out more on average, half of them 0.58. */
const USUAL_OUTPUT = 0.1;

const layerCase = fc.record({
  seed: fc.integer(),
  tokens: fc.constantFrom(0, 1, 2, 3, 4, 5, 7, 17, 33, 70),
  n: fc.integer({ min: 1, max: 70 }),
  m: fc.integer({ min: 1, max: 45 }),
  experts: fc.integer({ min: 1, max: 9 }),
  topKShare: fc.double({ min: 0, max: 1, noNaN: true }),
  dtype: fc.constantFrom<WeightDType>('f32', 'f64', 'bf16', 'f16'),
  activation: fc.constantFrom<Activation>('silu', 'gelu', 'gelu_tanh', 'relu2'),
  shared: fc.constantFrom('none', 'plain', 'gated'),
  oneTakesAll: fc.boolean(),
  packs: fc.boolean(),
});

type LayerCase = typeof layerCase extends fc.Arbitrary<infer Case> ? Case : never;

function drawInputs(c: LayerCase) {
  const random = new Random(c.seed);
  const topK = c.oneTakesAll ? 1 : 1 + Math.floor(c.topKShare * (c.experts - 1));
  const xDtype = c.dtype === 'f64' ? 'f64' : 'f32';
  const x = random.matrix(c.tokens, c.n, 1, xDtype);
  const { ids, weights } = random.routing(c.tokens, c.experts, topK);
  if (c.oneTakesAll) ids.fill(c.experts - 1);
  const shared = c.shared === 'none' ? undefined : randomExpert(random, c.n, c.m + 3, c.dtype);
  const gateLogit = c.shared === 'gated' ? random.matrix(1, c.n, 1, c.dtype) : undefined;
  return { random, topK, xDtype, x, ids, weights, shared, gateLogit } as const;
}

function sharedTensors(c: LayerCase, shared: DenseExpert | undefined, gateLogit: Matrix | undefined) {
  if (!shared) return undefined;
  return {
    gate: toTensor(device, c.dtype, shared.gate),
    up: toTensor(device, c.dtype, shared.up),
    down: toTensor(device, c.dtype, shared.down),
    gateLogit: gateLogit && toTensor(device, c.dtype, gateLogit),
  };
}

describe('dense experts', () => {
  test('forward equals plain f64 loops for any sizes, routing, dtype, activation and shared expert, packed or not', async () => {
    await fc.assert(
      fc.asyncProperty(layerCase, async (c) => {
        const { random, topK, xDtype, x, ids, weights, shared, gateLogit } = drawInputs(c);
        const experts = Array.from({ length: c.experts }, () => randomExpert(random, c.n, c.m, c.dtype));
        const tensors = (op: 'gate' | 'up' | 'down') => experts.map((e) => toTensor(device, c.dtype, e[op]));
        using layer = new DenseExperts({
          gate: tensors('gate'),
          up: tensors('up'),
          down: tensors('down'),
          activation: c.activation,
          sharedExpert: sharedTensors(c, shared, gateLogit),
        });
        const out = poisoned(device, xDtype, [c.tokens, c.n]);
        if (c.packs) await layer.pack();
        await layer.forward(toTensor(device, xDtype, x), routingTensors(ids, weights, c.tokens, topK), {
          out,
        });
        const wanted = moeForward(
          experts,
          x,
          ids,
          weights,
          topK,
          c.activation,
          shared && { expert: shared, gateLogit: gateLogit?.data },
        );
        expect(errorOfSums(await out.read(), wanted.data, USUAL_OUTPUT)).toBeLessThan(bound(c.dtype));
      }),
      { numRuns: 150 },
    );
  });
});

/** A random partition of the experts into groups of any sizes, experts in any order. */
function randomGroups(random: Random, experts: number): number[][] {
  const order = Array.from({ length: experts }, (_, i) => i).sort(() => random.uniform() - 0.5);
  const groups: number[][] = [];
  while (order.length > 0) groups.push(order.splice(0, 1 + random.integer(order.length)));
  return groups;
}

function stackTensor(parts: Matrix[], dtype: WeightDType): Tensor {
  const first = parts[0] as Matrix;
  const data = new Float64Array(parts.length * first.data.length);
  parts.forEach((part, i) => {
    data.set(part.data, i * first.data.length);
  });
  return toTensor(device, dtype, matrix(parts.length * first.rows, first.cols, data)).reshape([
    parts.length,
    first.rows,
    first.cols,
  ]);
}

/** A random latent operator, and the dense matrices it stands for. */
function randomLatent(
  random: Random,
  groups: number[][],
  out: number,
  inner: number,
  dtype: WeightDType,
  down: boolean,
  bases?: Matrix[],
) {
  const dense: Matrix[] = [];
  const a: Tensor[] = [];
  const b: Tensor[] = [];
  const basis: Matrix[] = [];
  groups.forEach((group, g) => {
    const shared = down ? out : inner;
    const own = down ? inner : out;
    const given = bases?.[g];
    const rank = given ? given.rows : 1 + random.integer(20);
    const scale = 1 / Math.sqrt(Math.sqrt(inner * rank));
    const bMatrix =
      given ?? (down ? random.matrix(shared, rank, scale, dtype) : random.matrix(rank, shared, scale, dtype));
    const aParts = group.map(() =>
      down ? random.matrix(rank, own, scale, dtype) : random.matrix(own, rank, scale, dtype),
    );
    group.forEach((expert, i) => {
      dense[expert] = down ? multiply(bMatrix, aParts[i] as Matrix) : multiply(aParts[i] as Matrix, bMatrix);
    });
    a.push(stackTensor(aParts, dtype));
    b.push(toTensor(device, dtype, bMatrix));
    basis.push(bMatrix);
  });
  return { operator: { a, b } as LatentOperator, dense, basis };
}

describe('latent experts', () => {
  const latentCase = fc.record({
    base: layerCase,
    gate: fc.boolean(),
    up: fc.boolean(),
    down: fc.boolean(),
    shareGateUp: fc.boolean(),
  });

  test('forward equals the dense experts A·B for ragged ranks, explicit groups and any mix of latent and dense operators, packed or not', async () => {
    await fc.assert(
      fc.asyncProperty(latentCase, async ({ base: c, ...latent }) => {
        const { random, topK, xDtype, x, ids, weights, shared, gateLogit } = drawInputs(c);
        const groups = randomGroups(random, c.experts);
        const draw = (on: boolean, out: number, inner: number, down: boolean, bases?: Matrix[]) => {
          if (on) return randomLatent(random, groups, out, inner, c.dtype, down, bases);
          const dense = Array.from({ length: c.experts }, () =>
            random.matrix(out, inner, 1 / Math.sqrt(inner), c.dtype),
          );
          return { operator: dense.map((w) => toTensor(device, c.dtype, w)), dense, basis: undefined };
        };
        const gate = draw(latent.gate, c.m, c.n, false);
        const share = latent.shareGateUp && latent.gate && latent.up;
        const up = draw(latent.up, c.m, c.n, false, share ? gate.basis : undefined);
        const down = draw(latent.down, c.n, c.m, true);
        const upOperator = share
          ? { a: (up.operator as LatentOperator).a, b: (gate.operator as LatentOperator).b }
          : up.operator;
        using layer = new LatentExperts({
          groups,
          gate: gate.operator,
          up: upOperator,
          down: down.operator,
          activation: c.activation,
          sharedExpert: sharedTensors(c, shared, gateLogit),
        });
        const out = poisoned(device, xDtype, [c.tokens, c.n]);
        if (c.packs) await layer.pack();
        await layer.forward(toTensor(device, xDtype, x), routingTensors(ids, weights, c.tokens, topK), {
          out,
        });
        const experts = gate.dense.map(
          (_, i) => ({ gate: gate.dense[i], up: up.dense[i], down: down.dense[i] }) as DenseExpert,
        );
        const wanted = moeForward(
          experts,
          x,
          ids,
          weights,
          topK,
          c.activation,
          shared && { expert: shared, gateLogit: gateLogit?.data },
        );
        expect(errorOfSums(await out.read(), wanted.data, USUAL_OUTPUT)).toBeLessThan(bound(c.dtype));
      }),
      { numRuns: 150 },
    );
  });
});
