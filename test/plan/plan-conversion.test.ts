import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { MoeSpec } from '../../lib/checkpoint/family.ts';
import { divisors } from '../../lib/factorization/groups.ts';
import { planConversion } from '../../lib/plan/plan-conversion.ts';
import type { PlanOptions } from '../../lib/plan/request.ts';
import { invalid } from '../support/errors.ts';
import { DEEPSEEK_V2_LITE, DEEPSEEK_V3, OLMOE, QWEN3_30B, QWEN15, specOf } from '../support/sizes.ts';

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

  test('below a multiple of 16 that floating point cannot vouch for, the next multiple is taken', () => {
    // r = 32 keeps 80%, as above.
    const plan = planConversion(specOf(48, 240, 1, 1, 1), { groupSize: 1, targetRatio: 0.2 });
    expect(plan.latentSize).toBe(16);
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

  test('a shared gate and up alone have twice the rows to draw a latent space from', () => {
    const form = { groupSize: 1, operators: ['gate', 'up'] as const, sharedGateUp: true };
    expect(planConversion(QWEN15, { ...form, latentSize: 2048 }).latentSize).toBe(2048);
    const narrow = specOf(2048, 100, 8, 2, 1);
    expect(planConversion(narrow, { ...form, latentSize: 200 }).latentSize).toBe(200);
    expect(() => planConversion(narrow, { ...form, latentSize: 201 })).toThrow(invalid('latentSize', '200'));
    const { operators: _, ...withDown } = form;
    expect(() => planConversion(narrow, { ...withDown, latentSize: 101 })).toThrow(
      invalid('latentSize', '100'),
    );
  });

  /** Each option with what is of another type, and would do damage if it were taken for its own. */
  const wrong: readonly (readonly [keyof PlanOptions, unknown])[] = [
    ['operators', 'gate'],
    ['operators', 5],
    ['operators', null],
    ['operators', { length: 1, 0: 'gate' }],
    ['operators', new Array(2 ** 32 - 1)],
    ['sharedGateUp', 'no'],
    ['sharedGateUp', null],
    ['groupSize', '15'],
    ['groupSize', null],
    ['latentSize', 704n],
    ['latentSize', [704]],
    ['targetRatio', null],
    ['otherParameters', '5'],
    ['otherParameters', 5n],
    ['otherParameters', null],
    ['otherParameters', Symbol('5')],
    ['otherParameters', Number.POSITIVE_INFINITY],
    ['bytesPerParameter', '2'],
    ['batch', 2n],
    ['groupProbabilities', null],
    ['groupProbabilities', 4],
    ['groupProbabilities', { length: 4, 0: 1, 1: 1, 2: 1, 3: 1 }],
    ['groupProbabilities', ['1', '1', '1', '1']],
    ['expertProbabilities', null],
    ['expertProbabilities', 60],
    ['expertProbabilities', [null, null, null, null]],
    ['expertProbabilities', new Array(4).fill(new Array(15).fill('0'))],
  ];
  test.each(wrong)('refuses %s of another type', (name, value) => {
    const groupSize = name === 'groupSize' ? {} : { groupSize: 15 };
    expect(() => planConversion(QWEN15, { ...groupSize, [name]: value })).toThrow(invalid(name));
  });

  test('refuses a model and options that are none', () => {
    for (const model of [null, undefined, 5, 'qwen', []]) {
      expect(() => planConversion(model as never)).toThrow(invalid('model'));
    }
    for (const layers of [null, undefined, 24]) {
      expect(() => planConversion({ ...QWEN15, layers } as never)).toThrow(invalid('layers'));
    }
    for (const options of [null, 5]) {
      expect(() => planConversion(QWEN15, options as never)).toThrow(invalid('options'));
    }
  });
});
