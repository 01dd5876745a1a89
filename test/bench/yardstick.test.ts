import { expect, it } from 'vitest';
import { holdAgainst } from '../../lib/bench/yardstick.ts';

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
