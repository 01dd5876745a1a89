import { expect, it } from 'vitest';
import { Took, takeTurns } from '../../lib/bench/timing.ts';

it('a call that warms up comes before those that count', async () => {
  let calls = 0;
  const { call } = await takeTurns({ call: () => new Took(++calls) }, { seconds: 0, minSamples: 3 });
  expect(call).toEqual([2, 3, 4]);
  expect(calls).toBe(4);
});
