import type { Device } from '../device.ts';
import { DenseExperts } from '../experts.ts';
import { factorizeExperts } from '../factorization/factorize.ts';
import type { Solver } from '../factorization/spec.ts';
import { WrongResult } from './check.ts';
import { type BenchDType, tensor } from './data.ts';
import type { Measured } from './row.ts';
import type { Effort } from './timing.ts';
import type { Yardstick } from './yardstick.ts';

/** Gate matrices of k random experts; up shares them, down only needs the shape. */
export function randomExperts(
  device: Device,
  n: number,
  m: number,
  k: number,
  dtype: BenchDType,
): DenseExperts {
  const gate = Array.from({ length: k }, (_, i) => tensor(device, dtype, [m, n], i + 1, 1 / Math.sqrt(n)));
  const down = gate.map((w) => w.reshape([n, m]));
  return new DenseExperts({ gate, up: gate, down, owned: [...down, ...gate] });
}

/** The report of the factorization of all gates in one group; the factors are let go. */
export async function factorizeGate(experts: DenseExperts, k: number, r: number, solver: Solver) {
  const options = { groupSize: k, latentSize: r, operators: ['gate'], solver, dtype: 'f32' } as const;
  const latent = await factorizeExperts(experts, options);
  const { report } = latent;
  latent.dispose();
  return report;
}

/** How far the error is above the least possible one. Throws where that is more than rounding explains. */
export async function checkedExcess(
  experts: DenseExperts,
  k: number,
  r: number,
  solver: Solver,
): Promise<number> {
  const report = await factorizeGate(experts, k, r, solver);
  const excess = Math.max(...report.map((group) => group.relativeError - group.optimalRelativeError));
  if (!(excess <= 1e-4)) throw new WrongResult(`factorize ${solver}: ${excess} above the optimum`);
  return excess;
}

/** One operator of one group of experts. */
export interface FactorizationSize {
  readonly n: number;
  readonly m: number;
  readonly k: number;
  readonly r: number;
}

/**
 * Times the factorization of one operator of one group. Only the Gram matrices (n²·m an expert, a symmetric half) count as
 * useful: they cannot be had for less, and what eigenvectors and projection take shows as distance from the ceiling.
 */
export async function measureFactorization(
  device: Device,
  { n, m, k, r }: FactorizationSize,
  effort: Effort,
  yardstick: Yardstick,
): Promise<Measured[]> {
  using experts = randomExperts(device, n, m, k, 'f32');
  await checkedExcess(experts, k, r, 'gram');
  const { gram } = await yardstick.timeTogether({ gram: () => factorizeGate(experts, k, r, 'gram') }, effort);
  const shape = `gate of ${k} experts ${m}x${n}, r ${r}`;
  return [{ name: 'factorize', shape, dtype: 'f32', timing: gram, flops: k * n * n * m }];
}
