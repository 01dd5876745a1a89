import type { Device } from '../device.ts';
import type { WeightDType } from '../dtype.ts';
import { throwIfAborted } from '../errors.ts';
import { awaitNative, callNative, type NativeBasis } from '../native.ts';
import type { Operator } from '../operators.ts';
import type { Tensor } from '../tensor.ts';
import type { FactorsByOperator } from './factors.ts';
import { namingExpert } from './non-finite-expert.ts';
import type { FactorizationReport } from './report.ts';
import type { CheckedSpec } from './spec.ts';

/** One group to factorize, its experts delivered one at a time. */
export interface GroupSource {
  readonly device: Device;
  readonly group: number;
  /** The numbers of its experts. */
  readonly members: readonly number[];
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  /** Of the factors. */
  dtype(operator: Operator): WeightDType;
  /** Loads an operator of the group's `index`-th expert; called once in each of the two passes. */
  load(operator: Operator, index: number): Promise<Tensor>;
  /** Gives a loaded tensor back. */
  release(tensor: Tensor): void;
  /** Called after each expert of each pass. */
  step(): void;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Factorizes one group with one expert in memory at a time, one operator after the other; gate and up come together
 * where they share their B. The factors belong to the caller.
 */
export async function* factorizeGroup(
  source: GroupSource,
  spec: CheckedSpec,
): AsyncGenerator<FactorsByOperator> {
  for (const together of operatorSets(spec)) {
    const made: Tensor[] = [];
    let basis: NativeBasis | undefined;
    let factors: FactorsByOperator;
    try {
      basis = openBasis(source, spec, together[0] as Operator);
      factors = await factorizeTogether(source, spec, together, basis, made);
    } catch (error) {
      for (const tensor of made) tensor.dispose();
      throw error;
    } finally {
      basis?.dispose();
    }
    yield factors;
  }
}

async function factorizeTogether(
  source: GroupSource,
  spec: CheckedSpec,
  together: readonly Operator[],
  basis: NativeBasis,
  made: Tensor[],
): Promise<FactorsByOperator> {
  const { device, members, hiddenSize: n, intermediateSize: m } = source;
  const latentSize = spec.latentSizes[together[0] as Operator];
  const dtype = source.dtype(together[0] as Operator);
  await eachExpert(source, together, (operator, index, w) =>
    namingExpert(members[index] as number, operator, () => awaitNative(() => basis.add(w.native))),
  );
  const isDown = together[0] === 'down';
  const b = device.empty(dtype, isDown ? [n, latentSize] : [latentSize, n]);
  made.push(b);
  const solved = await awaitNative(() => basis.solve(b.native));

  const k = members.length;
  const a = new Map<Operator, Tensor>();
  for (const operator of together) {
    const tensor = device.empty(dtype, isDown ? [k, latentSize, m] : [k, m, latentSize]);
    made.push(tensor);
    a.set(operator, tensor);
  }
  let squaredResidual = 0;
  await eachExpert(source, together, async (operator, index, w) => {
    using target = (a.get(operator) as Tensor).slice(index);
    squaredResidual += await awaitNative(() => basis.project(w.native, target.native));
  });
  const relativeError = solved.squaredNorm > 0 ? Math.sqrt(squaredResidual / solved.squaredNorm) : 0;
  return together.map((operator) => {
    const report: FactorizationReport = {
      operator,
      group: source.group,
      latentSize,
      relativeError,
      optimalRelativeError: solved.optimalRelativeError,
      exact: solved.jointDimension <= latentSize,
      jointDimension: solved.jointDimension,
      tolerance: solved.tolerance,
      ...(solved.controlRelativeError !== undefined && { controlRelativeError: solved.controlRelativeError }),
    };
    return [operator, { a: a.get(operator) as Tensor, b, report }] as const;
  });
}

function openBasis({ device, hiddenSize }: GroupSource, spec: CheckedSpec, operator: Operator): NativeBasis {
  return callNative(() =>
    device.native.sharedBasis({
      side: operator === 'down' ? 'output' : 'input',
      sharedSize: hiddenSize,
      solver: spec.solver,
      rankReduction: spec.rankReduction,
      controlSeed: spec.control ? 1 : undefined,
    }),
  );
}

async function eachExpert(
  source: GroupSource,
  together: readonly Operator[],
  visit: (operator: Operator, index: number, w: Tensor) => Promise<void>,
): Promise<void> {
  for (const operator of together) {
    for (let index = 0; index < source.members.length; index++) {
      throwIfAborted(source.signal);
      const w = await source.load(operator, index);
      try {
        await visit(operator, index, w);
      } finally {
        source.release(w);
      }
      source.step();
    }
  }
}

/** The order in which `factorizeGroup` loads a group's matrices: each set of operators twice. */
export function* loadOrder(spec: CheckedSpec, groupSize: number): Generator<readonly [Operator, number]> {
  for (const together of operatorSets(spec)) {
    for (let pass = 0; pass < 2; pass++) {
      for (const operator of together)
        for (let index = 0; index < groupSize; index++) yield [operator, index];
    }
  }
}

function operatorSets({ operators: chosen, sharedGateUp }: CheckedSpec): readonly (readonly Operator[])[] {
  if (!sharedGateUp) return chosen.map((name) => [name]);
  return chosen.includes('down') ? [['gate', 'up'], ['down']] : [['gate', 'up']];
}
