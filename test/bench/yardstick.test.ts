import { expect, it, vi } from 'vitest';
import { measureCeilings } from '../../lib/bench/ceilings.ts';
import { Took } from '../../lib/bench/timing.ts';
import { holdAgainst, Yardstick } from '../../lib/bench/yardstick.ts';

vi.mock('../../lib/bench/ceilings.ts', async (importOriginal) => ({
  ...(await importOriginal<typeof import('../../lib/bench/ceilings.ts')>()),
  measureCeilings: vi.fn(),
}));

const ceilings = { fmaGflops: 300, sgemmGflops: 250, readGBps: 30 };
const slowed = (factor: number) => ({
  fmaGflops: ceilings.fmaGflops / factor,
  sgemmGflops: ceilings.sgemmGflops / factor,
  readGBps: ceilings.readGBps / factor,
});
/** The share of sgemm that 1e9 FLOPs in the median time are. */
const share = ({ stats, ceilings: held }: ReturnType<typeof holdAgainst>) =>
  1e9 / (stats.medianMs * 1e6) / held.sgemmGflops;

it('a machine that is slow for some samples does not change shares of its ceilings', () => {
  const slowness = [1, 1, 3, 3, 3, 1, 1.5, 3, 1];
  const held = holdAgainst(
    slowness.map((slow) => 5 * slow),
    slowness.map(slowed),
  );
  expect(held.stats.medianMs).toBe(7.5);
  expect(share(held)).toBeCloseTo(0.8, 12);
});

it('a sample that was slow while the machine was not lowers the share, if most were', () => {
  const around = Array.from({ length: 5 }, () => ceilings);
  expect(share(holdAgainst([5, 5, 5, 20, 20], around))).toBeCloseTo(0.8, 12);
  expect(share(holdAgainst([5, 5, 20, 20, 20], around))).toBeCloseTo(0.2, 12);
});

it('ceilings of an undisturbed timing are those that were measured', () => {
  expect(holdAgainst([4, 5, 6], [ceilings, ceilings, ceilings]).ceilings).toEqual(ceilings);
});

it('a timing is held against the mean of what the machine could do before and after it', async () => {
  const all = (rate: number) => ({ fmaGflops: rate, sgemmGflops: rate, readGBps: rate });
  vi.mocked(measureCeilings).mockResolvedValueOnce(all(1)).mockResolvedValueOnce(all(3));
  const calls = { call: () => new Took(5) };
  const { call } = await new Yardstick(1).timeTogether(calls, { seconds: 0, minSamples: 1 });
  expect(call.stats.medianMs).toBe(5);
  expect(call.ceilings).toEqual(all(2));
});
