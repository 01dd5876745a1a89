import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  distinctGroups,
  divisors,
  type Factorization,
  groupProbability,
  type LayerSizes,
  layerCosts,
  type PlanOptions,
  planConversion,
} from '../lib/analysis.ts';
import type { MoeSpec } from '../lib/checkpoint/family.ts';

function specOf(
  hiddenSize: number,
  intermediateSize: number,
  numExperts: number,
  topK: number,
  numLayers: number,
): MoeSpec {
  return {
    hiddenSize,
    intermediateSize,
    numExperts,
    topK,
    activation: 'silu',
    layers: Array.from({ length: numLayers }, (_, layer) => layer),
    numLayers,
    router: { scoring: 'softmax', topK, renormalize: true },
  };
}

const QWEN15 = specOf(2048, 1408, 60, 4, 24);
const DEEPSEEK_V2_LITE = specOf(2048, 1408, 64, 6, 26);
const QWEN3_30B = specOf(2048, 768, 128, 8, 48);
const OLMOE = specOf(2048, 1024, 64, 8, 16);
const DEEPSEEK_V3 = specOf(7168, 2048, 256, 8, 58);

const invalid = (...words: string[]) =>
  expect.objectContaining({
    code: 'INVALID_ARGUMENT',
    message: { asymmetricMatch: (text: unknown) => words.every((word) => String(text).includes(word)) },
  });

/** All K-subsets of 0..N-1. */
function* subsets(N: number, K: number, from = 0): Generator<number[]> {
  if (K === 0) yield [];
  for (let first = from; K > 0 && first <= N - K; first++) {
    for (const rest of subsets(N, K - 1, first + 1)) yield [first, ...rest];
  }
}

/** The group of each expert when groups of these sizes follow each other. */
function groupOfExpert(groupSizes: readonly number[]): number[] {
  return groupSizes.flatMap((size, group) => new Array<number>(size).fill(group));
}

function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

describe('distinctGroups', () => {
  test('is the mean over all subsets, for every small N, k, K', () => {
    let cases = 0;
    for (let N = 1; N <= 10; N++) {
      for (const k of divisors(N)) {
        for (let K = 1; K <= N; K++) {
          const counts = [...subsets(N, K)].map(
            (chosen) => new Set(chosen.map((e) => Math.floor(e / k))).size,
          );
          expect(distinctGroups(N, k, K), `N ${N}, k ${k}, K ${K}`).toBeCloseTo(mean(counts), 12);
          cases++;
        }
      }
    }
    expect(cases).toBeGreaterThan(150);
  });

  test('is K for groups of one and 1 for one group, also where binomials overflow', () => {
    expect(distinctGroups(4096, 1, 512)).toBeCloseTo(512, 9);
    expect(distinctGroups(4096, 4096, 512)).toBe(1);
    expect(distinctGroups(4096, 64, 2048)).toBeCloseTo(64, 9);
  });

  test('of the binomials in exact integers', () => {
    const binomial = (a: number, b: number): bigint => {
      let value = 1n;
      for (let j = 0; j < b; j++) value = (value * BigInt(a - j)) / BigInt(j + 1);
      return value;
    };
    for (const [N, k, K] of [
      [60, 15, 4],
      [64, 8, 6],
      [128, 16, 8],
      [256, 32, 8],
      [512, 2, 22],
    ] as const) {
      const digits = 10n ** 18n;
      const missed = Number((binomial(N - k, K) * digits) / binomial(N, K)) / 1e18;
      expect(Math.abs(groupProbability(N, k, K) / (1 - missed) - 1)).toBeLessThan(1e-14);
    }
  });

  test('refuses a k that does not divide N, and names divisors near by', () => {
    expect(() => distinctGroups(60, 16, 4)).toThrow(invalid('groupSize', '16', '12, 15, 20, 30'));
    expect(() => distinctGroups(60, 0, 4)).toThrow(invalid('groupSize', '0'));
    expect(() => distinctGroups(60, 15, 61)).toThrow(invalid('topK', '61'));
  });
});

describe('layerCosts', () => {
  test('are the formulas of the design, for equal groups and one r', () => {
    const size = fc.integer({ min: 1, max: 300 });
    fc.assert(
      fc.property(
        size,
        size,
        fc.integer({ min: 1, max: 12 }),
        fc.integer({ min: 1, max: 12 }),
        fc.nat(),
        size,
        fc.integer({ min: 1, max: 64 }),
        (n, m, k, G, s, r, T) => {
          const N = k * G;
          const K = 1 + (s % N);
          const sizes: LayerSizes = { hiddenSize: n, intermediateSize: m, numExperts: N, topK: K };
          const groupSizes = new Array<number>(G).fill(k);
          const costs = layerCosts(
            sizes,
            { groupSizes, latentSizes: { gate: r, up: r, down: r } },
            { bytesPerParameter: 4, batch: T },
          );
          const E = distinctGroups(N, k, K);
          const p = E / G;
          const close = (
            actual: { dense: number; latent: number; ratio: number },
            dense: number,
            latent: number,
          ) => {
            expect(Math.abs(actual.dense - dense)).toBeLessThanOrEqual(1e-9 * dense);
            expect(Math.abs(actual.latent - latent)).toBeLessThanOrEqual(1e-9 * latent);
            expect(actual.ratio).toBe(actual.latent / actual.dense);
          };
          close(costs.expertParameters, 3 * N * m * n, 3 * (N * m * r + G * r * n));
          close(costs.flopsPerToken, 6 * K * m * n, 6 * r * (n * E + m * K));
          const experts = N * (1 - (1 - K / N) ** T);
          const groups = G * (1 - (1 - p) ** T);
          close(costs.weightBytesPerBatch, 4 * 3 * m * n * experts, 4 * 3 * r * (m * experts + n * groups));
          close(costs.weightBytesPerToken, 4 * 3 * m * n * K, 4 * 3 * r * (m * K + n * E));
          close(costs.allToAllBytesPerToken, 4 * 2 * E * n, 4 * E * (Math.min(2 * r, n) + r));
          // Where the design says that less is stored, or computed, it is.
          const stores = 1 / r - (1 / n + 1 / (k * m));
          if (Math.abs(stores) > 1e-9) expect(costs.expertParameters.ratio < 1).toBe(stores > 0);
          const computes = 1 / r - (E / (K * m) + 1 / n);
          if (Math.abs(computes) > 1e-9) expect(costs.flopsPerToken.ratio < 1).toBe(computes > 0);
        },
      ),
    );
  });

  test.each<[string, Factorization]>([
    [
      'ragged groups and latent sizes',
      { groupSizes: [3, 1, 2], latentSizes: { gate: [4, 2, 3], up: [3, 1, 5], down: [2, 2, 1] } },
    ],
    [
      'gate and up with one B',
      { groupSizes: [2, 4], latentSizes: { gate: [3, 2], up: [3, 2], down: 4 }, sharedGateUp: true },
    ],
    ['a dense down', { groupSizes: [3, 3], latentSizes: { gate: 2, up: 4 } }],
    ['a dense gate', { groupSizes: [6], latentSizes: { up: 3, down: 5 } }],
    ['only down', { groupSizes: [5, 1], latentSizes: { down: [2, 1] } }],
    ['nothing factored', { groupSizes: [2, 2, 2], latentSizes: {} }],
  ])('equal a count over all routings: %s', (_, factorization) => {
    const sizes: LayerSizes = { hiddenSize: 5, intermediateSize: 7, numExperts: 6, topK: 2 };
    const counted = [...subsets(6, 2)].map((experts) => countOne(sizes, factorization, experts));
    const costs = layerCosts(sizes, factorization, { bytesPerParameter: 1 });
    expect(costs.flopsPerToken.latent).toBeCloseTo(2 * mean(counted.map(({ weights }) => weights)), 9);
    expect(costs.weightBytesPerToken.latent).toBeCloseTo(mean(counted.map(({ weights }) => weights)), 9);
    expect(costs.allToAllBytesPerToken.latent).toBeCloseTo(mean(counted.map(({ traffic }) => traffic)), 9);
    expect(costs.allToAllBytesPerToken.dense).toBeCloseTo(
      2 * 5 * mean(counted.map(({ groups }) => groups)),
      9,
    );
    const all = countOne(sizes, factorization, [0, 1, 2, 3, 4, 5]);
    expect(costs.expertParameters.latent).toBe(all.weights);
  });

  test('weights touched by a batch equal a count over all pairs of routings', () => {
    const sizes: LayerSizes = { hiddenSize: 5, intermediateSize: 7, numExperts: 6, topK: 2 };
    const factorization: Factorization = {
      groupSizes: [1, 2, 3],
      latentSizes: { gate: [1, 2, 3], up: 2 },
      sharedGateUp: false,
    };
    const routings = [...subsets(6, 2)];
    const pairs = routings.flatMap((a) =>
      routings.map((b) => countOne(sizes, factorization, [...new Set([...a, ...b])]).weights),
    );
    const costs = layerCosts(sizes, factorization, { bytesPerParameter: 2, batch: 2 });
    expect(costs.weightBytesPerBatch.latent).toBeCloseTo(2 * mean(pairs), 9);
  });

  test('take measured group probabilities instead of uniform routing', () => {
    const factorization: Factorization = {
      groupSizes: [32, 32],
      latentSizes: { gate: 512, up: 512, down: 512 },
    };
    const skewed = layerCosts(OLMOE, factorization, { groupProbabilities: [1, 0] });
    expect(skewed.flopsPerToken.latent).toBe(6 * 512 * (2048 * 1 + 1024 * 8));
    expect(() => layerCosts(OLMOE, factorization, { groupProbabilities: [1] })).toThrow(
      invalid('groupProbabilities'),
    );
    expect(() => layerCosts(OLMOE, factorization, { groupProbabilities: [1, 1.5] })).toThrow(invalid('1.5'));
  });

  test('refuse sizes that do not fit', () => {
    const costs =
      (change: Partial<Factorization>, sizes: Partial<LayerSizes> = {}) =>
      () =>
        layerCosts({ ...OLMOE, ...sizes }, { groupSizes: [64], latentSizes: { gate: 4, up: 4 }, ...change });
    expect(costs({})).not.toThrow();
    expect(costs({ groupSizes: [32, 31] })).toThrow(invalid('groupSizes', '64'));
    expect(costs({ latentSizes: { gate: [4, 4] } })).toThrow(invalid('latentSizes.gate'));
    expect(costs({ latentSizes: { gate: 0 } })).toThrow(invalid('latentSizes.gate', '0'));
    expect(costs({ latentSizes: { gate: 4, up: 5 }, sharedGateUp: true })).toThrow(
      invalid('equal', 'sharedGateUp'),
    );
    expect(costs({ latentSizes: { down: 5 }, sharedGateUp: true })).toThrow(invalid('sharedGateUp'));
    expect(costs({}, { topK: 65 })).toThrow(invalid('topK', '65'));
    expect(costs({}, { hiddenSize: 1.5 })).toThrow(invalid('hiddenSize', '1.5'));
  });
});

/** What a token routed to `experts` touches and sends, counted matrix by matrix. */
function countOne(
  { hiddenSize: n, intermediateSize: m }: LayerSizes,
  factorization: Factorization,
  experts: readonly number[],
) {
  const { groupSizes, latentSizes, sharedGateUp } = factorization;
  const groupOf = groupOfExpert(groupSizes);
  const groups = [...new Set(experts.map((expert) => groupOf[expert] as number))];
  const r = (operator: 'gate' | 'up' | 'down', group: number) => {
    const size = latentSizes[operator];
    return typeof size === 'number' ? size : size?.[group];
  };
  let weights = 0;
  for (const expert of experts) {
    for (const operator of ['gate', 'up', 'down'] as const)
      weights += m * (r(operator, groupOf[expert] as number) ?? n);
  }
  let traffic = 0;
  for (const group of groups) {
    for (const operator of ['gate', 'up', 'down'] as const) {
      if (!(sharedGateUp && operator === 'up')) weights += (r(operator, group) ?? 0) * n;
    }
    const gate = r('gate', group);
    const up = r('up', group);
    const z = gate === undefined || up === undefined ? n : sharedGateUp ? gate : gate + up;
    traffic += Math.min(z, n) + (r('down', group) ?? n);
  }
  return { weights, traffic, groups: groups.length };
}

describe('planConversion', () => {
  test("the paper's r = m with k = 4 or 8 stores less and computes 1.2 to 1.6 times more", () => {
    const ratios: number[] = [];
    for (const [spec, groupSizes] of [
      [QWEN15, [4]],
      [DEEPSEEK_V2_LITE, [4, 8]],
      [QWEN3_30B, [4, 8]],
    ] as const) {
      for (const groupSize of groupSizes) {
        const plan = planConversion(spec, { groupSize });
        expect(plan.latentSize).toBe(spec.intermediateSize);
        expect(plan.expertParameters.ratio).toBeLessThan(1);
        ratios.push(Number(plan.flopsPerToken.ratio.toFixed(1)));
      }
    }
    expect(Math.min(...ratios)).toBe(1.2);
    expect(Math.max(...ratios)).toBe(1.6);
  });

  test('with k = N and r = m computing less needs m < n(K−1)/K', () => {
    const cheaper = (spec: MoeSpec) =>
      planConversion(spec, { groupSize: spec.numExperts }).flopsPerToken.ratio < 1;
    for (const m of [1535, 1536, 1537]) {
      const spec = specOf(2048, m, 60, 4, 1);
      expect(cheaper(spec)).toBe(m < 1536);
    }
  });

  test('sums over the MoE layers, and compares whole models where the rest is known', () => {
    const plan = planConversion(QWEN15, { groupSize: 15, latentSize: 704, otherParameters: 1e9 });
    const dense = 24 * 60 * 3 * 2048 * 1408;
    const latent = 24 * 3 * (60 * 1408 * 704 + 4 * 704 * 2048);
    expect(plan.expertParameters).toEqual({ dense, latent, ratio: latent / dense });
    expect(plan.parameters).toEqual({
      dense: dense + 1e9,
      latent: latent + 1e9,
      ratio: (latent + 1e9) / (dense + 1e9),
    });
    expect(plan).toMatchObject({
      groupSize: 15,
      numGroups: 4,
      latentSize: 704,
      groupSizeChosen: false,
      sharedGateUp: false,
    });
    // 4(1 − C(45, 4) / C(60, 4))
    expect(plan.distinctGroups).toBeCloseTo(4 * (1 - 148995 / 487635), 12);
    expect(planConversion(QWEN15, { groupSize: 15, latentSize: 704 }).parameters).toBeUndefined();
  });

  test('takes a config.json as well as a spec', () => {
    const config = {
      model_type: 'qwen2_moe',
      hidden_size: 2048,
      moe_intermediate_size: 1408,
      shared_expert_intermediate_size: 5632,
      num_experts: 60,
      num_experts_per_tok: 4,
      num_hidden_layers: 24,
      hidden_act: 'silu',
    };
    const options = { groupSize: 15, latentSize: 704 };
    expect(planConversion(config, options)).toEqual(planConversion(QWEN15, options));
    expect(() => planConversion({ ...config, model_type: 'gpt2' }, options)).toThrow(
      expect.objectContaining({ code: 'UNSUPPORTED_CHECKPOINT' }),
    );
    expect(() => planConversion('qwen' as never, options)).toThrow(invalid('model'));
  });

  test('targetRatio takes the largest r that removes the share: 16 more (1 below 16) would not', () => {
    const models = fc.constantFrom(
      QWEN15,
      DEEPSEEK_V2_LITE,
      QWEN3_30B,
      OLMOE,
      DEEPSEEK_V3,
      specOf(64, 20, 8, 2, 2),
      specOf(96, 24, 6, 3, 1),
    );
    let reached = 0;
    let small = 0;
    let refused = 0;
    fc.assert(
      fc.property(
        models,
        fc.nat(),
        fc.double({ min: 0.01, max: 0.99, noNaN: true }),
        fc.boolean(),
        fc.constantFrom(['gate', 'up', 'down'], ['gate', 'up']),
        (spec, pick, targetRatio, sharedGateUp, operators) => {
          const sizes = divisors(spec.numExperts);
          const groupSize = sizes[pick % sizes.length] as number;
          const options = { groupSize, sharedGateUp, operators: operators };
          const removed = (latentSize: number) =>
            1 - planConversion(spec, { ...options, latentSize }).expertParameters.ratio;
          const limit = Math.min(spec.hiddenSize, groupSize * spec.intermediateSize);
          let plan: ReturnType<typeof planConversion>;
          try {
            plan = planConversion(spec, { ...options, targetRatio });
          } catch (error) {
            expect(error).toEqual(invalid('targetRatio', 'group size'));
            expect(removed(1)).toBeLessThan(targetRatio);
            refused++;
            return;
          }
          expect(1 - plan.expertParameters.ratio).toBeGreaterThanOrEqual(targetRatio);
          const step = plan.latentSize >= 16 ? 16 : 1;
          expect(plan.latentSize % step).toBe(0);
          if (plan.latentSize + step <= limit)
            expect(removed(plan.latentSize + step)).toBeLessThan(targetRatio);
          reached++;
          if (step === 1) small++;
        },
      ),
      { numRuns: 500 },
    );
    expect(reached).toBeGreaterThan(200);
    expect(small).toBeGreaterThan(5);
    expect(refused).toBeGreaterThan(5);
  });

  test('an exact hit is not missed by rounding', () => {
    const spec = specOf(256, 256, 1, 1, 1);
    // One expert: r(m + n) = 512 r against 65536: r = 64 removes exactly half.
    expect(planConversion(spec, { groupSize: 1, targetRatio: 0.5 }).latentSize).toBe(64);
  });

  test('a hit that floating point cannot vouch for is not taken', () => {
    // r = 2 keeps 108 of 135 parameters: exactly 20% less, but 1 − 108/135 is below 0.2 in doubles.
    const plan = planConversion(specOf(3, 15, 1, 1, 1), { groupSize: 1, targetRatio: 0.2 });
    expect(plan.latentSize).toBe(1);
    expect(1 - plan.expertParameters.ratio).toBeGreaterThanOrEqual(0.2);
  });

  test('a share out of reach says what can be reached', () => {
    expect(() => planConversion(QWEN15, { groupSize: 15, targetRatio: 0.4, operators: ['down'] })).toThrow(
      invalid('0.4', '33.32%', 'down'),
    );
    expect(() => planConversion(specOf(64, 20, 8, 2, 2), { targetRatio: 0.999 })).toThrow(invalid('0.999'));
  });

  test('chooses k for a ratio as documented: within 5% of the best retention, the fewest FLOPs', () => {
    // The last is one where the best retention computes more than a near tie.
    for (const spec of [QWEN15, DEEPSEEK_V2_LITE, QWEN3_30B, OLMOE, DEEPSEEK_V3, specOf(256, 16, 60, 4, 1)]) {
      for (const targetRatio of [0.1, 0.3, 0.5, 0.8]) {
        const plan = planConversion(spec, { targetRatio });
        const all = divisors(spec.numExperts)
          .filter((k) => k > 1)
          .map((groupSize) => planConversion(spec, { groupSize, targetRatio }));
        const retained = (p: typeof plan) =>
          p.latentSize / Math.min(spec.hiddenSize, p.groupSize * spec.intermediateSize);
        const best = Math.max(...all.map(retained));
        const close = all.filter((p) => retained(p) >= 0.95 * best);
        expect(close.map((p) => p.groupSize)).toContain(plan.groupSize);
        for (const p of close)
          expect(p.flopsPerToken.latent).toBeGreaterThanOrEqual(plan.flopsPerToken.latent);
        expect(plan.groupSizeChosen).toBe(true);
        expect(plan.reason).toContain(`group size ${plan.groupSize}`);
        expect(plan.reason).toContain(`latent size ${plan.latentSize}`);
      }
    }
  });

  test('chooses the smallest k that pays for a given r', () => {
    const plan = planConversion(QWEN15, { latentSize: 704 });
    const all = divisors(60)
      .filter((k) => k > 1)
      .map((groupSize) => planConversion(QWEN15, { groupSize, latentSize: 704 }));
    const paying = all.filter((p) => p.expertParameters.ratio < 1 && p.flopsPerToken.ratio <= 1);
    expect(plan.groupSize).toBe(paying[0]?.groupSize);
    expect(all[0]?.groupSize).toBeLessThanOrEqual(plan.groupSize);
    expect(plan.reason).toContain('computes no more');
  });

  test('says so when no k pays for a given r', () => {
    const wide = specOf(64, 256, 8, 2, 1);
    const plan = planConversion(wide, { latentSize: 64 });
    expect(plan.groupSize).toBe(8);
    expect(plan.expertParameters.ratio).toBeGreaterThan(1);
    expect(plan.reason).toContain('no group size stores less');
    const slower = planConversion(DEEPSEEK_V2_LITE, { latentSize: 1800 });
    expect(slower.flopsPerToken.ratio).toBeGreaterThan(1);
    expect(slower.reason).toContain('no group size computes less');
  });

  test.each<[PlanOptions, string[]]>([
    [{ groupSize: 16 }, ['groupSize', '16', '12, 15, 20, 30']],
    [{ groupSize: 61 }, ['groupSize', '61', '30, 60']],
    [{ groupSize: -4 }, ['groupSize', '-4']],
    [{ groupSize: 15, latentSize: 0 }, ['latentSize', '0', '2048']],
    [{ groupSize: 15, latentSize: 2049 }, ['latentSize', '2049', '2048']],
    [{ groupSize: 1, latentSize: 1409 }, ['latentSize', '1409', '1408']],
    [{ groupSize: 15, latentSize: 10.5 }, ['latentSize', '10.5']],
    [{ targetRatio: 0 }, ['targetRatio', '0']],
    [{ targetRatio: 1 }, ['targetRatio', '1']],
    [{ targetRatio: Number.NaN }, ['targetRatio', 'NaN']],
    [{ targetRatio: '0.5' as never }, ['targetRatio', '"0.5"']],
    [{ targetRatio: 0.5, latentSize: 64 }, ['targetRatio', 'latentSize']],
    [{ operators: [] }, ['operators']],
    [{ operators: ['router' as never] }, ['operators', 'router']],
    [{ operators: ['gate'], sharedGateUp: true }, ['operators', 'sharedGateUp']],
    [{ batch: 0 }, ['batch', '0']],
    [{ bytesPerParameter: -2 }, ['bytesPerParameter', '-2']],
    [{ otherParameters: -1 }, ['otherParameters', '-1']],
    [{ groupProbabilities: [1] }, ['groupProbabilities']],
  ])('refuses %j', (options, words) => {
    expect(() => planConversion(QWEN15, options)).toThrow(invalid(...words));
  });
});
