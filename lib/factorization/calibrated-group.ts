import type { WeightDType } from '../dtype.ts';
import { expected, MolaeError, throwIfAborted } from '../errors.ts';
import type { DenseExperts } from '../experts.ts';
import { awaitNative, callNative, type NativeCalibratedGroup } from '../native.ts';
import { OPERATORS, type Operator } from '../operators.ts';
import type { Routing } from '../routing.ts';
import type { Tensor } from '../tensor.ts';
import { CalibratedLoss, reportOf } from './calibrated-report.ts';
import type { FactorStorage, FactorsByOperator } from './factors.ts';
import { namingExpert } from './non-finite-expert.ts';

/** What reaches a MoE layer on calibration text; see `calibrate`. */
export interface LayerInputs {
  /** [tokens, n] */
  readonly x: Tensor<'f32'>;
  readonly routing: Routing;
}

/** The steps of calibrated factorization. What is off by default did not pay where it was measured (docs/choosing.md). */
export interface CalibratedSteps {
  /**
   * How many tokens an expert must have seen for its own inputs to count as much as those of its group; by default the
   * hidden size n.
   */
  readonly shrinkage?: number | undefined;
  /** Fit every expert's factors to its own inputs; otherwise to the group's. By default true. */
  readonly refit?: boolean | undefined;
  /** Weigh rows of gate and up by how strongly the expert's output answers to them. By default true. */
  readonly weighRows?: boolean | undefined;
  /** Fit the factors of down to what the converted gate and up give it. By default false. */
  readonly refitDown?: boolean | undefined;
  /**
   * How many times factors and bases of gate and up are fitted in turn, each to the other, before the factors are fitted
   * for good: bases then know that factors are fitted to each expert's own inputs. Lowers the error of gate and up; what
   * that is worth to whole models was not measured. Needs `refit` to change anything; not with `sharedGateUp`. By default
   * 0.
   */
  readonly alternations?: number | undefined;
}

/** What every direction of an operator's latent space is worth. */
export interface OperatorSpectrum {
  /** With `sharedGateUp`, `gate` stands for both. */
  readonly operator: Operator;
  readonly group: number;
  /**
   * Descending: the squared output of the layer, summed over the calibration tokens, that is lost with each direction.
   * Comparable between operators and groups of a layer.
   */
  readonly values: Float64Array;
}

/** A group, and what reaches it. */
export interface CalibratedGroupInputs {
  readonly experts: DenseExperts;
  readonly inputs: LayerInputs;
  readonly group: number;
  readonly members: readonly number[];
}

/** @internal What of it is to be factorized. */
export interface CalibratedGroupSource extends CalibratedGroupInputs {
  /** Undefined for an operator that stays dense. */
  sizes(operator: Operator): number | undefined;
}

/** What is done with every group. */
export interface CalibratedGroupOptions extends CalibratedSteps {
  readonly sharedGateUp?: boolean | undefined;
  readonly signal?: AbortSignal | undefined;
}

/**
 * @internal How often factorizing goes over every expert.
 *
 * @throws MolaeError `INVALID_ARGUMENT`
 */
export function calibratedPasses({
  alternations = 0,
  sharedGateUp = false,
}: Pick<CalibratedGroupOptions, 'alternations' | 'sharedGateUp'>): number {
  if (!Number.isSafeInteger(alternations) || alternations < 0) {
    throw expected('a whole number', 'alternations', alternations);
  }
  if (sharedGateUp && alternations > 0) {
    throw new MolaeError('INVALID_ARGUMENT', 'alternations needs bases of their own for gate and up');
  }
  return 2 + alternations;
}

/** @internal The spectra of one group. */
export async function groupSpectra(
  source: CalibratedGroupInputs,
  operators: readonly Operator[],
  options: CalibratedGroupOptions,
  progress: () => void,
): Promise<OperatorSpectrum[]> {
  return withObserved(source, options, progress, async (native) => {
    const spectra: OperatorSpectrum[] = [];
    for (const operator of operators) {
      if (options.sharedGateUp && operator === 'up') continue;
      throwIfAborted(options.signal);
      const values = await awaitNative(() => native.spectrum(operator));
      spectra.push({ operator, group: source.group, values });
    }
    return spectra;
  });
}

/** @internal The bases B of one group without the factors, which belong to the caller. */
export async function groupBases(
  source: CalibratedGroupSource,
  options: CalibratedGroupOptions & FactorStorage,
  progress: () => void,
): Promise<Partial<Record<Operator, Tensor>>> {
  return withObserved(source, options, progress, async (native, made) => {
    const { gate, up, down } = await solveBases(native, source, options, made);
    return { ...(gate && { gate: gate.b }), ...(up && { up: up.b }), ...(down && { down: down.b }) };
  });
}

/** @internal The factors of one group, which belong to the caller. */
export async function factorizeCalibratedGroup(
  source: CalibratedGroupSource,
  options: CalibratedGroupOptions & FactorStorage,
  progress: () => void,
): Promise<FactorsByOperator> {
  const { experts, members } = source;
  return withObserved(source, options, progress, async (native, made) => {
    const solved = await solveBases(native, source, options, made);
    for (let i = 0; i < (options.alternations ?? 0); i++) {
      await alternate(native, source, solved, options.signal, progress);
    }
    const a = allocateFactors(source, options, solved, made);
    const loss = new CalibratedLoss();
    for (const [index, expert] of members.entries()) {
      throwIfAborted(options.signal);
      using gate = a.gate?.slice(index);
      using up = a.up?.slice(index);
      using down = a.down?.slice(index);
      const [g, u, d] = matrices(experts, expert);
      loss.add(
        await awaitNative(() =>
          native.project(index, g.native, u.native, d.native, gate?.native, up?.native, down?.native),
        ),
      );
      progress();
    }
    return OPERATORS.flatMap((operator) => {
      const basis = solved[operator];
      const own = a[operator];
      if (!basis || !own) return [];
      const report = reportOf(operator, source.group, basis, loss);
      return [[operator, { a: own, b: basis.b, report }] as const];
    });
  });
}

/** Uses a group that has seen all its experts; what `use` has made goes where it fails. */
async function withObserved<Result>(
  source: CalibratedGroupInputs,
  options: CalibratedGroupOptions,
  progress: () => void,
  use: (native: NativeCalibratedGroup, made: Tensor[]) => Promise<Result>,
): Promise<Result> {
  const made: Tensor[] = [];
  const native = openGroup(source.experts, source.inputs, source.members, options);
  try {
    await observe(native, source, options.signal, progress);
    return await use(native, made);
  } catch (error) {
    for (const tensor of made) tensor.dispose();
    throw error;
  } finally {
    native.dispose();
  }
}

interface SolvedBasis {
  readonly b: Tensor;
  readonly values: Float64Array;
  readonly latentSize: number;
}

type SolvedBases = Partial<Record<Operator, SolvedBasis>>;

async function solveBases(
  native: NativeCalibratedGroup,
  { experts, sizes }: CalibratedGroupSource,
  { sharedGateUp = false, dtype, signal }: CalibratedGroupOptions & FactorStorage,
  made: Tensor[],
): Promise<SolvedBases> {
  const { device, hiddenSize } = experts;
  const solved: SolvedBases = {};
  for (const operator of OPERATORS) {
    const latentSize = sizes(operator);
    if (latentSize === undefined) continue;
    if (sharedGateUp && operator === 'up') {
      solved.up = solved.gate as SolvedBasis;
      continue;
    }
    throwIfAborted(signal);
    const b = device.empty(
      dtype ?? dtypeOf(experts, operator),
      operator === 'down' ? [hiddenSize, latentSize] : [latentSize, hiddenSize],
    );
    made.push(b);
    const values = await awaitNative(() => native.solve(operator, b.native));
    solved[operator] = { b, values, latentSize };
  }
  return solved;
}

/** Gives gate and up, where they are converted, bases for factors that are fitted to each expert's own inputs. */
async function alternate(
  native: NativeCalibratedGroup,
  { experts, members }: CalibratedGroupSource,
  solved: SolvedBases,
  signal: AbortSignal | undefined,
  progress: () => void,
): Promise<void> {
  const operators = (['gate', 'up'] as const).filter((operator) => solved[operator]);
  for (const operator of operators) await awaitNative(() => native.beginAlternation(operator));
  for (const [index, expert] of members.entries()) {
    throwIfAborted(signal);
    for (const operator of operators) {
      const w = experts[operator][expert] as Tensor;
      await awaitNative(() => native.addToAlternation(operator, index, w.native));
    }
    progress();
  }
  for (const operator of operators) {
    throwIfAborted(signal);
    const { b } = solved[operator] as SolvedBasis;
    await awaitNative(() => native.endAlternation(operator, b.native));
  }
}

function allocateFactors(
  { experts, members }: CalibratedGroupSource,
  { dtype }: FactorStorage,
  solved: SolvedBases,
  made: Tensor[],
): Partial<Record<Operator, Tensor>> {
  const { device, intermediateSize: m } = experts;
  const factors: Partial<Record<Operator, Tensor>> = {};
  for (const operator of OPERATORS) {
    const r = solved[operator]?.latentSize;
    if (r === undefined) continue;
    const k = members.length;
    const shape = operator === 'down' ? [k, r, m] : [k, m, r];
    const tensor = device.empty(dtype ?? dtypeOf(experts, operator), shape);
    made.push(tensor);
    factors[operator] = tensor;
  }
  return factors;
}

function dtypeOf(experts: DenseExperts, operator: Operator): WeightDType {
  return experts[operator][0]?.dtype as WeightDType;
}

function matrices(experts: DenseExperts, expert: number): [Tensor, Tensor, Tensor] {
  return [experts.gate[expert] as Tensor, experts.up[expert] as Tensor, experts.down[expert] as Tensor];
}

function openGroup(
  { device, hiddenSize, intermediateSize, activation }: DenseExperts,
  { x, routing }: LayerInputs,
  members: readonly number[],
  {
    shrinkage = hiddenSize,
    refit = true,
    weighRows = true,
    refitDown = false,
    sharedGateUp = false,
  }: CalibratedGroupOptions,
): NativeCalibratedGroup {
  return callNative(() =>
    device.native.calibratedGroup({
      x: x.native,
      ids: routing.ids.native,
      weights: routing.weights.native,
      experts: members,
      hiddenSize,
      intermediateSize,
      activation,
      sharedGateUp,
      shrinkage,
      refit,
      weighRows,
      refitDown,
    }),
  );
}

async function observe(
  native: NativeCalibratedGroup,
  { experts, members }: CalibratedGroupInputs,
  signal: AbortSignal | undefined,
  progress: () => void,
): Promise<void> {
  for (const [index, expert] of members.entries()) {
    throwIfAborted(signal);
    const [gate, up, down] = matrices(experts, expert);
    await namingExpert(expert, undefined, () =>
      awaitNative(() => native.observe(index, gate.native, up.native, down.native)),
    );
    progress();
  }
}
