import { expect, it } from 'vitest';
import { routerLogits } from '../../bench/support/router-logits.ts';
import { makeRoute } from '../../lib/bench/batches.ts';
import { route } from '../../lib/routing.ts';
import { openTestDevice } from '../support/device.ts';

it('router logits lead to the experts and weights of the route that they are made from', async () => {
  const [tokens, N, K] = [20, 9, 3];
  const made = makeRoute(tokens, { N, K }, 5, 'zipf');
  using device = await openTestDevice();
  using logits = device.tensor('f32', routerLogits(made, N, K), [tokens, N]);
  const { ids, weights } = await route(logits, { scoring: 'softmax', topK: K, renormalize: true });
  const byToken = (all: ArrayLike<number>, scores: ArrayLike<number>) =>
    Array.from(
      { length: tokens },
      (_, t) =>
        new Map(Array.from({ length: K }, (_, j) => [all[t * K + j] as number, scores[t * K + j] as number])),
    );
  const found = byToken(await ids.read(), await weights.read());
  for (const [t, wanted] of byToken(made.ids, made.weights).entries()) {
    expect(new Set(found[t]?.keys())).toEqual(new Set(wanted.keys()));
    for (const [expert, weight] of wanted) expect(found[t]?.get(expert)).toBeCloseTo(weight, 6);
  }
});
