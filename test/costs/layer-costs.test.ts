import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { distinctGroups, groupProbability } from '../../lib/costs/distinct-groups.ts';
import { type Factorization, layerCosts } from '../../lib/costs/layer-costs.ts';
import type { LayerSizes } from '../../lib/costs/sizes.ts';
import { divisors } from '../../lib/factorization/groups.ts';
import { invalid } from '../support/errors.ts';
import { OLMOE } from '../support/sizes.ts';

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

  test('refuses a k that does not divide N, and names those that do', () => {
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
    expect(() => layerCosts(OLMOE, factorization, { groupProbabilities: [0, 0] })).toThrow(invalid('use'));
  });

  test('take measured probabilities of experts, too: equal to a count over the routings they come from', () => {
    const sizes: LayerSizes = { hiddenSize: 5, intermediateSize: 7, numExperts: 6, topK: 2 };
    const factorization: Factorization = { groupSizes: [3, 1, 2], latentSizes: { gate: [4, 2, 3], up: 2 } };
    const routings = [
      [0, 1],
      [0, 5],
      [0, 3],
      [4, 5],
      [0, 1],
    ] as const;
    const groupOf = groupOfExpert(factorization.groupSizes);
    const shareOf = (uses: (routing: readonly number[]) => boolean) =>
      routings.filter(uses).length / routings.length;
    const expertProbabilities = factorization.groupSizes.map((size, group) => {
      const first = groupOf.indexOf(group);
      return Array.from({ length: size }, (_, i) => shareOf((routing) => routing.includes(first + i)));
    });
    const groupProbabilities = factorization.groupSizes.map((_, group) =>
      shareOf((routing) => routing.some((expert) => groupOf[expert] === group)),
    );
    const options = { bytesPerParameter: 1, groupProbabilities, expertProbabilities };
    const costs = layerCosts(sizes, factorization, options);
    const counted = routings.map((experts) => countOne(sizes, factorization, experts));
    expect(costs.flopsPerToken.latent).toBeCloseTo(2 * mean(counted.map(({ weights }) => weights)), 9);
    expect(costs.weightBytesPerToken.latent).toBeCloseTo(mean(counted.map(({ weights }) => weights)), 9);
    expect(costs.weightBytesPerToken.dense).toBeCloseTo(3 * 5 * 7 * 2, 9);
    expect(costs.allToAllBytesPerToken.latent).toBeCloseTo(mean(counted.map(({ traffic }) => traffic)), 9);
    expect(costs.expertParameters).toEqual(layerCosts(sizes, factorization).expertParameters);
    for (const wrong of [
      [[1, 1, 1], [1], [1]],
      [[1, 1, 1], [1]],
      [[1, 1, 1], [1], [1, 1.5]],
    ])
      expect(() => layerCosts(sizes, factorization, { expertProbabilities: wrong })).toThrow(
        invalid('expertProbabilities'),
      );
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

  test('refuse arguments of another type', () => {
    const fitting = { groupSizes: [64], latentSizes: { gate: 4 } };
    expect(() => layerCosts(null as never, fitting)).toThrow(invalid('sizes'));
    expect(() => layerCosts(OLMOE, null as never)).toThrow(invalid('factorization'));
    expect(() => layerCosts(OLMOE, fitting, null as never)).toThrow(invalid('options'));
    for (const groupSizes of [null, 64, '64', { length: 1, 0: 64 }, new Array(2 ** 32 - 1)]) {
      expect(() => layerCosts(OLMOE, { ...fitting, groupSizes } as never)).toThrow(invalid('groupSizes'));
    }
    for (const latentSizes of [null, 4, undefined]) {
      expect(() => layerCosts(OLMOE, { ...fitting, latentSizes } as never)).toThrow(invalid('latentSizes'));
    }
    for (const gate of [null, '4', { length: 1, 0: 4 }]) {
      const latentSizes = { gate };
      expect(() => layerCosts(OLMOE, { ...fitting, latentSizes } as never)).toThrow(
        invalid('latentSizes.gate'),
      );
    }
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
