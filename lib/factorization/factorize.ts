import type { Device } from '../device.ts';
import type { WeightDType } from '../dtype.ts';
import { checkCallback, checkObject, expected, MolaeError, throwIfAborted } from '../errors.ts';
import { DenseExperts, LatentExperts, type LatentOperator, type Operator } from '../experts.ts';
import { awaitNative, callNative, type NativeBasis } from '../native.ts';
import type { Tensor } from '../tensor.ts';
import { type Partition, resolveGroups } from './groups.ts';
import { checkLatentSize, checkOperators, checkSharedLatentSize, largestLatentSize } from './spec.ts';

export { resolveGroups } from './groups.ts';

/**
 * `gram`: eigenvectors of Σ W_iᵀW_i, a fraction of the cost. `svd`: a direct SVD of the stacked experts in f64, the
 * reference, with the whole stack in memory.
 */
export type Solver = 'gram' | 'svd';

/** What became of one operator of one group. With `sharedGateUp`, gate and up have the figures of both together. */
export interface FactorizationReport {
  readonly operator: Operator;
  readonly group: number;
  readonly latentSize: number;
  /** What errors are relative to: the experts' weights (stacked SVD), or what they put out on calibration text. */
  readonly norm?: 'weights' | 'outputs';
  /**
   * sqrt(Σ‖W_i − A_i B‖²_F / Σ‖W_i‖²_F), measured on the factors as stored, rounded to their dtype. In the norm of
   * outputs: of the operator's results on up to 1024 calibration tokens of each expert, weighed as calibration weighs them.
   */
  readonly relativeError: number;
  /**
   * The least possible (Eckart–Young): sqrt(Σ_{j>r} λ_j / Σ λ_j), λ the spectrum of Σ W_iᵀW_i. In the norm of outputs: of the
   * whitened spectrum, for experts that all see their group's inputs.
   */
  readonly optimalRelativeError: number;
  /** Theorem 1: the joint row space (down: column space) of the group has a dimension of at most r. */
  readonly exact: boolean;
  /** Its numerical dimension: singular values of the stack above `tolerance` times the largest. */
  readonly jointDimension: number;
  readonly tolerance: number;
  /** The optimum of the same experts after each one's shared side went through its own random signed permutation. */
  readonly controlRelativeError?: number;
  /** In the norm of outputs: what the group's experts put out, all operators converted, relative to the originals. */
  readonly outputError?: number;
}

/** How the experts of a layer are factorized. */
export interface FactorizationSpec {
  /** r, for all operators or for each; at most min(n, k·m). */
  readonly latentSize: number | Readonly<Partial<Record<Operator, number>>>;
  /** The operators to factorize; by default all. The others stay dense. */
  readonly operators?: readonly Operator[] | undefined;
  /** One B for gate and up, so that z_gate = z_up. */
  readonly sharedGateUp?: boolean | undefined;
  /** By default `gram`. */
  readonly solver?: Solver | undefined;
  /** Truncate each expert to this rank first (the paper's first step): never a gain, by default off. */
  readonly rankReduction?: number | undefined;
  /** Also find the control error, which costs the first pass once more. */
  readonly control?: boolean | undefined;
}

/** Which experts share, and how the work is watched and stopped: of every way to factorize a layer. */
export interface GroupedWork {
  /** k: consecutive experts 0…k−1, k…2k−1, … share a basis. Must divide the number of experts. */
  readonly groupSize?: number | undefined;
  /** Explicit groups instead, a partition of the experts. */
  readonly groups?: readonly (readonly number[])[] | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Called after each expert of each pass. */
  readonly onProgress?: ((progress: FactorizeProgress) => void) | undefined;
}

/** How factors are stored. */
export interface FactorStorage {
  /** Of the factors; by default the experts' own. */
  readonly dtype?: WeightDType | undefined;
}

export interface FactorizeOptions extends FactorizationSpec, GroupedWork, FactorStorage {}

export interface FactorizeProgress {
  /** Experts passed so far, over all passes, operators and groups. */
  readonly done: number;
  readonly total: number;
}

/** The factors of one operator of one group. */
export interface OperatorFactors {
  /** [k, m, r], for down [k, r, m] */
  readonly a: Tensor;
  /** [r, n], for down [n, r]; the same tensor for gate and up where they share it. */
  readonly b: Tensor;
  readonly report: FactorizationReport;
}

/** One group to factorize, its experts delivered one at a time. */
export interface GroupSource {
  readonly device: Device;
  readonly group: number;
  readonly groupSize: number;
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
 * Factorizes a DenseExperts into LatentExperts by the paper's two steps (arXiv 2503.23100): optional rank reduction of
 * each expert, then per group and operator the best shared B, and each A_i as the projection on it.
 *
 * @throws MolaeError `INVALID_ARGUMENT` for a k that does not divide N or an r out of range, `NON_FINITE` naming
 * operator, expert and position, `ABORTED`.
 */
export async function factorizeExperts(
  experts: DenseExperts,
  options: FactorizeOptions,
): Promise<LatentExperts> {
  if (!(experts instanceof DenseExperts)) throw expected('DenseExperts', 'experts', experts);
  checkObject(options, 'options');
  const groups = resolveGroups(options, experts.numExperts);
  const spec = checkSpec(options, experts, groups);
  const progress = progressCounter(options.onProgress, spec.operators.length * experts.numExperts * 2);
  const made: Tensor[] = [];
  const reports: FactorizationReport[] = [];
  const latent: Record<Operator, { a: Tensor[]; b: Tensor[] }> = {
    gate: { a: [], b: [] },
    up: { a: [], b: [] },
    down: { a: [], b: [] },
  };
  try {
    for (const [group, members] of groups.entries()) {
      const source: GroupSource = {
        device: experts.device,
        group,
        groupSize: members.length,
        hiddenSize: experts.hiddenSize,
        intermediateSize: experts.intermediateSize,
        dtype: (operator) => options.dtype ?? (experts[operator][0]?.dtype as WeightDType),
        load: async (operator, index) => experts[operator][members[index] as number] as Tensor,
        release: () => {},
        step: progress,
        signal: options.signal,
      };
      for await (const factors of factorizeGroup(source, spec)) {
        for (const [operator, { a, b, report }] of factors) {
          made.push(a, b);
          reports.push(report);
          latent[operator].a.push(a);
          latent[operator].b.push(b);
        }
      }
    }
    const operator = (name: Operator): LatentOperator | readonly Tensor[] =>
      spec.operators.includes(name) ? latent[name] : experts[name];
    return new LatentExperts({
      groups,
      gate: operator('gate'),
      up: operator('up'),
      down: operator('down'),
      activation: experts.activation,
      sharedExpert: experts.sharedExpert,
      report: reports,
      owned: [...new Set(made)],
    });
  } catch (error) {
    for (const tensor of made) tensor.dispose();
    throw error;
  }
}

/**
 * Factorizes one group with one expert in memory at a time, one operator after the other; gate and up come together
 * where they share their B. The factors belong to the caller.
 */
export async function* factorizeGroup(
  source: GroupSource,
  spec: CheckedSpec,
): AsyncGenerator<readonly (readonly [Operator, OperatorFactors])[]> {
  for (const together of operatorSets(spec)) {
    const made: Tensor[] = [];
    let basis: NativeBasis | undefined;
    let factors: readonly (readonly [Operator, OperatorFactors])[];
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
): Promise<(readonly [Operator, OperatorFactors])[]> {
  const { device, groupSize, hiddenSize: n, intermediateSize: m } = source;
  const latentSize = spec.latentSizes[together[0] as Operator];
  const dtype = source.dtype(together[0] as Operator);
  await eachExpert(source, together, (operator, index, w) => addExpert(basis, operator, index, w));
  const isDown = together[0] === 'down';
  const b = device.empty(dtype, isDown ? [n, latentSize] : [latentSize, n]);
  made.push(b);
  const solved = await awaitNative(() => basis.solve(b.native));

  const a = new Map<Operator, Tensor>();
  for (const operator of together) {
    const tensor = device.empty(dtype, isDown ? [groupSize, latentSize, m] : [groupSize, m, latentSize]);
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
    for (let index = 0; index < source.groupSize; index++) {
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

async function addExpert(basis: NativeBasis, operator: Operator, index: number, w: Tensor): Promise<void> {
  try {
    await awaitNative(() => basis.add(w.native));
  } catch (error) {
    if (!(error instanceof MolaeError) || error.code !== 'NON_FINITE') throw error;
    throw new NonFiniteExpertError(operator, index, error);
  }
}

/** @internal Says which expert of the group; who knows the tensor's name puts it in. */
export class NonFiniteExpertError extends MolaeError {
  readonly operator: Operator;
  readonly index: number;
  readonly position: string;

  constructor(operator: Operator, index: number, cause: MolaeError) {
    const position = cause.message.replace(/^.* at /, '');
    super(
      'NON_FINITE',
      `The ${operator} matrix of expert ${index} of the group has NaN or infinity at ${position}`,
      { cause },
    );
    this.operator = operator;
    this.index = index;
    this.position = position;
  }
}

/** A FactorizationSpec with its defaults, checked against a layer's sizes. */
export interface CheckedSpec {
  readonly latentSizes: Readonly<Record<Operator, number>>;
  readonly operators: readonly Operator[];
  readonly sharedGateUp: boolean;
  readonly solver: Solver;
  readonly rankReduction: number;
  readonly control: boolean;
}

/** Throws `INVALID_ARGUMENT` unless the spec fits the sizes and the smallest group. */
export function checkSpec(
  spec: FactorizationSpec,
  sizes: { readonly hiddenSize: number; readonly intermediateSize: number },
  groups: Partition,
): CheckedSpec {
  const { solver = 'gram', rankReduction = 0, control = false, sharedGateUp = false } = spec;
  const operators = checkOperators(spec.operators, sharedGateUp);
  if (solver !== 'gram' && solver !== 'svd') throw expected('gram or svd', 'solver', solver);
  if (!Number.isSafeInteger(rankReduction) || rankReduction < 0) {
    throw expected('a non-negative integer', 'rankReduction', rankReduction);
  }
  const smallest = Math.min(...groups.map((group) => group.length));
  const latentSizes = { gate: 0, up: 0, down: 0 };
  for (const name of operators) {
    const size = typeof spec.latentSize === 'object' ? spec.latentSize?.[name] : spec.latentSize;
    checkLatentSize(size, largestLatentSize(sizes, smallest, name, sharedGateUp), `latentSize of ${name}`);
    latentSizes[name] = size;
  }
  if (sharedGateUp) checkSharedLatentSize(latentSizes.gate, latentSizes.up);
  return { latentSizes, operators, sharedGateUp, solver, rankReduction, control };
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

/** @internal Counts steps for a listener. */
export function progressCounter(onProgress: GroupedWork['onProgress'], total: number): () => void {
  checkCallback(onProgress, 'onProgress');
  let done = 0;
  return () => {
    done++;
    onProgress?.({ done, total });
  };
}
