import fc from 'fast-check';
import { afterAll, describe, expect, test } from 'vitest';
import { coActivationShares } from '../../../lib/methods/grouping/co-activation.ts';
import { affinityGroups, affinityWithin } from '../../../lib/methods/grouping/partition.ts';
import { openTestDevice } from '../../support/device.ts';
import { Random } from '../../support/random.ts';

const device = await openTestDevice();
afterAll(() => device.dispose());

const EXPERTS = 8;

/** A routing in which some experts are chosen together more often than others. */
function skewedRouting(seed: number, tokens: number, topK: number) {
  const random = new Random(seed);
  const { weights } = random.routing(tokens, EXPERTS, topK);
  const ids = new Int32Array(tokens * topK);
  for (let t = 0; t < tokens; t++) {
    // Neighbours of a random expert, three apart, and now and then a stranger.
    const first = random.integer(EXPERTS);
    const pool = Array.from({ length: EXPERTS }, (_, i) => (first + 3 * i) % EXPERTS);
    if (random.uniform() < 0.3) pool.reverse();
    for (let k = 0; k < topK; k++) ids[t * topK + k] = pool[k] as number;
  }
  return { ids, weights };
}

const isIn = (chosen: Int32Array, topK: number, token: number, expert: number) =>
  chosen.subarray(token * topK, (token + 1) * topK).includes(expert);

describe('co-activation', () => {
  test('is the share of tokens that are routed to both experts, by a plain count', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.record({
          seed: fc.nat(),
          tokens: fc.integer({ min: 0, max: 60 }),
          topK: fc.integer({ min: 1, max: 4 }),
        }),
        async ({ seed, tokens, topK }) => {
          const { ids, weights } = skewedRouting(seed, tokens, topK);
          using idsOnDevice = device.tensor('i32', ids, [tokens, topK]);
          using weightsOnDevice = device.tensor('f32', weights, [tokens, topK]);
          const shares = await coActivationShares({ ids: idsOnDevice, weights: weightsOnDevice }, EXPERTS);
          for (let a = 0; a < EXPERTS; a++) {
            for (let b = 0; b < EXPERTS; b++) {
              let both = 0;
              for (let t = 0; t < tokens; t++)
                if (a !== b && isIn(ids, topK, t, a) && isIn(ids, topK, t, b)) both++;
              expect(shares[a]?.[b]).toBeCloseTo(tokens > 0 ? both / tokens : 0, 12);
            }
          }
        },
      ),
      { numRuns: 30 },
    );
  });

  test('summed over pairs of experts is by how much fewer groups than experts a token needs; pairs by it need no more than consecutive ones', async () => {
    const [tokens, topK] = [400, 3];
    for (const seed of [1, 2, 3, 4, 5]) {
      const { ids, weights } = skewedRouting(seed, tokens, topK);
      using idsOnDevice = device.tensor('i32', ids, [tokens, topK]);
      using weightsOnDevice = device.tensor('f32', weights, [tokens, topK]);
      const shares = await coActivationShares({ ids: idsOnDevice, weights: weightsOnDevice }, EXPERTS);
      const distinct = (groups: readonly (readonly number[])[]) => {
        let used = 0;
        for (let t = 0; t < tokens; t++)
          for (const group of groups) if (group.some((expert) => isIn(ids, topK, t, expert))) used++;
        return used / tokens;
      };
      const consecutive = [0, 2, 4, 6].map((expert) => [expert, expert + 1]);
      const chosen = affinityGroups(shares, 2);
      for (const groups of [consecutive, chosen])
        expect(distinct(groups)).toBeCloseTo(topK - affinityWithin(shares, groups), 10);
      expect(distinct(chosen)).toBeLessThan(distinct(consecutive));
    }
  });
});
