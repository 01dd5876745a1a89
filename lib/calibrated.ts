import type { WeightDType } from './dtype.ts';
import { checkCallback, checkObject, expected, MolaeError, throwIfAborted } from './errors.ts';
import { DenseExperts, LatentExperts, type LatentOperator, OPERATORS, type Operator } from './experts.ts';
import { type FactorizationReport, type OperatorFactors, resolveGroups } from './factorize.ts';
import { awaitNative, callNative, type NativeCalibratedGroup } from './native.ts';
import type { Routing } from './routing.ts';
import { checkTensor, type Tensor } from './tensor.ts';

/** What reaches a MoE layer on calibration text; see `calibrate`. */
export interface LayerInputs {
  /** [tokens, n] */
  readonly x: Tensor<'f32'>;
  readonly routing: Routing;
}

/** Latent sizes of every group, by operator; operators left out stay dense. */
export type GroupLatentSizes = Readonly<Partial<Record<Operator, readonly number[]>>>;

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

export interface CalibratedGroups extends CalibratedSteps {
  /** k: consecutive experts share a basis. Must divide the number of experts. */
  readonly groupSize?: number | undefined;
  /** Explicit groups instead, a partition of the experts. */
  readonly groups?: readonly (readonly number[])[] | undefined;
  /** One B for gate and up. */
  readonly sharedGateUp?: boolean | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Called after each expert of each pass. */
  readonly onProgress?: ((progress: { readonly done: number; readonly total: number }) => void) | undefined;
}

export interface CalibratedOptions extends CalibratedGroups {
  /** r, for all operators, for each, or for each operator of each group. Operators left out stay dense. */
  readonly latentSize: number | Readonly<Partial<Record<Operator, number | readonly number[]>>>;
  /** Of the factors; by default the experts' own. */
  readonly dtype?: WeightDType | undefined;
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

/**
 * Factorizes experts so that their outputs on calibration text suffer least, in closed form: see `CalibratedGroup` in
 * native/core for the mathematics. Bases come from the eigenvectors of the whitened, output-weighted stack (gate, up) and
 * of the group's routed output (down); factors are fitted to each expert's own inputs.
 *
 * An expert that no token reached has no say in its group's bases; a group that none reached is factorized as by
 * `factorizeExperts`.
 *
 * @throws MolaeError `INVALID_ARGUMENT` for a k that does not divide N or an r out of range, `SHAPE_MISMATCH` for inputs
 * of another layer, `NON_FINITE` naming group, operator, expert and position, `DEVICE_UNAVAILABLE` on devices that cannot
 * do this (yet all but the CPU), `ABORTED`.
 */
export async function factorizeCalibrated(
  experts: DenseExperts,
  inputs: LayerInputs,
  options: CalibratedOptions,
): Promise<LatentExperts> {
  checkArguments(experts, inputs, options);
  const groups = resolveGroups(options, experts.numExperts);
  const latentSizes = checkLatentSizes(options, experts, groups);
  const progress = counter(options.onProgress, calibratedPasses(options) * experts.numExperts);
  const made: Tensor[] = [];
  const report: FactorizationReport[] = [];
  const factors: Record<Operator, { a: Tensor[]; b: Tensor[] }> = {
    gate: { a: [], b: [] },
    up: { a: [], b: [] },
    down: { a: [], b: [] },
  };
  try {
    for (const [group, members] of groups.entries()) {
      const sizes = (operator: Operator) => latentSizes[operator]?.[group];
      const done = await factorizeCalibratedGroup(
        { experts, inputs, group, members, sizes },
        options,
        progress,
      );
      for (const [operator, { a, b, report: own }] of done) {
        made.push(a, b);
        report.push(own);
        factors[operator].a.push(a);
        factors[operator].b.push(b);
      }
    }
    const operator = (name: Operator): LatentOperator | readonly Tensor[] =>
      latentSizes[name] ? factors[name] : experts[name];
    return new LatentExperts({
      groups,
      gate: operator('gate'),
      up: operator('up'),
      down: operator('down'),
      activation: experts.activation,
      sharedExpert: experts.sharedExpert,
      report,
      owned: [...new Set(made)],
    });
  } catch (error) {
    for (const tensor of made) tensor.dispose();
    throw error;
  }
}

/** The spectra of all groups of a layer: what `allocateLatentSizes` spends a budget by. Half the work of factorizing. */
export async function calibratedSpectra(
  experts: DenseExperts,
  inputs: LayerInputs,
  options: CalibratedGroups & { readonly operators?: readonly Operator[] | undefined },
): Promise<OperatorSpectrum[]> {
  checkArguments(experts, inputs, options);
  const groups = resolveGroups(options, experts.numExperts);
  const { operators = OPERATORS, sharedGateUp = false } = options;
  const progress = counter(options.onProgress, experts.numExperts);
  const spectra: OperatorSpectrum[] = [];
  for (const [group, members] of groups.entries()) {
    const native = openGroup(experts, inputs, members, options);
    try {
      await observe(native, { experts, group, members }, options.signal, progress);
      for (const operator of operators) {
        if (sharedGateUp && operator === 'up') continue;
        throwIfAborted(options.signal);
        const values = await awaitNative(() => native.spectrum(operator));
        spectra.push({ operator, group, values });
      }
    } finally {
      native.dispose();
    }
  }
  return spectra;
}

/** @internal A group, and what reaches it. */
export interface CalibratedGroupSource {
  readonly experts: DenseExperts;
  readonly inputs: LayerInputs;
  readonly group: number;
  readonly members: readonly number[];
  /** Undefined for an operator that stays dense. */
  sizes(operator: Operator): number | undefined;
}

/**
 * @internal How often factorizing goes over every expert.
 *
 * @throws MolaeError `INVALID_ARGUMENT`
 */
export function calibratedPasses({
  alternations = 0,
  sharedGateUp = false,
}: Pick<CalibratedGroups, 'alternations' | 'sharedGateUp'>): number {
  if (!Number.isSafeInteger(alternations) || alternations < 0) {
    throw expected('a whole number', 'alternations', alternations);
  }
  if (sharedGateUp && alternations > 0) {
    throw new MolaeError('INVALID_ARGUMENT', 'alternations needs bases of their own for gate and up');
  }
  return 2 + alternations;
}

/** @internal The factors of one group, which belong to the caller. */
export async function factorizeCalibratedGroup(
  source: CalibratedGroupSource,
  options: Omit<CalibratedGroups, 'onProgress'> & Pick<CalibratedOptions, 'dtype'>,
  progress: () => void,
): Promise<(readonly [Operator, OperatorFactors])[]> {
  const { experts, inputs, members } = source;
  const made: Tensor[] = [];
  const native = openGroup(experts, inputs, members, options);
  try {
    await observe(native, source, options.signal, progress);
    const solved = await solveBases(native, source, options, made);
    for (let i = 0; i < (options.alternations ?? 0); i++) {
      await alternate(native, source, solved, options.signal, progress);
    }
    const a = allocateFactors(source, options, solved, made);
    const loss = new Loss();
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
  {
    sharedGateUp = false,
    dtype,
    signal,
  }: Omit<CalibratedGroups, 'onProgress'> & Pick<CalibratedOptions, 'dtype'>,
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
  { dtype }: Pick<CalibratedOptions, 'dtype'>,
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
  }: CalibratedGroups,
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
  { experts, group, members }: Pick<CalibratedGroupSource, 'experts' | 'group' | 'members'>,
  signal: AbortSignal | undefined,
  progress: () => void,
): Promise<void> {
  for (const [index, expert] of members.entries()) {
    throwIfAborted(signal);
    const [gate, up, down] = matrices(experts, expert);
    try {
      await awaitNative(() => native.observe(index, gate.native, up.native, down.native));
    } catch (error) {
      if (!(error instanceof MolaeError) || error.code !== 'NON_FINITE') throw error;
      throw new MolaeError('NON_FINITE', `Expert ${expert} of group ${group}: ${error.message}`, {
        cause: error,
      });
    }
    progress();
  }
}

/** What the experts of a group lose together, by operator. */
class Loss {
  readonly #lost = [0, 0, 0];
  readonly #original = [0, 0, 0];
  #output = 0;

  add({
    lost,
    original,
    lostOutput,
  }: {
    lost: Float64Array;
    original: Float64Array;
    lostOutput: number;
  }): void {
    for (let i = 0; i < 3; i++) {
      (this.#lost[i] as number) += lost[i] as number;
      (this.#original[i] as number) += original[i] as number;
    }
    this.#output += lostOutput;
  }

  relative(operator: Operator): number {
    const index = OPERATORS.indexOf(operator);
    return relativeTo(this.#lost[index] as number, this.#original[index] as number);
  }

  get output(): number {
    return relativeTo(this.#output, this.#original[2] as number);
  }
}

function relativeTo(part: number, whole: number): number {
  return whole > 0 ? Math.sqrt(part / whole) : 0;
}

/** Sums of f32 products stand behind the spectra: what is smaller than this, relative to the largest, is rounding. */
const TOLERANCE = 2 ** -8;

function reportOf(
  operator: Operator,
  group: number,
  { values, latentSize }: SolvedBasis,
  loss: Loss,
): FactorizationReport {
  const total = values.reduce((sum, value) => sum + value, 0);
  const tail = values.subarray(latentSize).reduceRight((sum, value) => sum + value, 0);
  const threshold = TOLERANCE ** 2 * (values[0] ?? 0);
  const jointDimension = values.reduce((count, value) => count + (value > threshold ? 1 : 0), 0);
  return {
    operator,
    group,
    latentSize,
    norm: 'outputs',
    relativeError: loss.relative(operator),
    optimalRelativeError: relativeTo(tail, total),
    exact: jointDimension <= latentSize,
    jointDimension,
    tolerance: TOLERANCE,
    outputError: loss.output,
  };
}

function checkLatentSizes(
  { latentSize, sharedGateUp = false }: CalibratedOptions,
  { hiddenSize, intermediateSize }: DenseExperts,
  groups: readonly (readonly number[])[],
): GroupLatentSizes {
  const given = (operator: Operator) =>
    typeof latentSize === 'object' ? latentSize?.[operator] : latentSize;
  const sizes: Partial<Record<Operator, readonly number[]>> = {};
  for (const operator of OPERATORS) {
    const own = given(operator);
    if (own === undefined) continue;
    const list = Array.isArray(own) ? (own as readonly number[]) : groups.map(() => own as number);
    if (list.length !== groups.length) {
      throw expected(`${groups.length} latent sizes, one for each group`, `latentSize of ${operator}`, own);
    }
    for (const [group, size] of list.entries()) {
      const stacked = sharedGateUp && operator !== 'down' ? 2 : 1;
      const members = (groups[group] as readonly number[]).length;
      const largest = Math.min(hiddenSize, stacked * members * intermediateSize);
      if (!Number.isSafeInteger(size) || size < 1 || size > largest) {
        throw expected(`an integer from 1 to ${largest}`, `latentSize of ${operator}, group ${group}`, size);
      }
    }
    sizes[operator] = list;
  }
  if (Object.keys(sizes).length === 0) throw expected('a latent size', 'latentSize', latentSize);
  if (sharedGateUp && String(sizes.gate) !== String(sizes.up)) {
    throw new MolaeError('INVALID_ARGUMENT', 'sharedGateUp needs the same latentSize for gate and up');
  }
  return sizes;
}

function checkArguments(experts: DenseExperts, inputs: LayerInputs, options: object): void {
  if (!(experts instanceof DenseExperts)) throw expected('DenseExperts', 'experts', experts);
  checkObject(inputs, 'inputs');
  checkTensor(inputs.x, 'inputs.x');
  checkObject(inputs.routing, 'inputs.routing');
  checkTensor(inputs.routing.ids, 'inputs.routing.ids');
  checkTensor(inputs.routing.weights, 'inputs.routing.weights');
  checkObject(options, 'options');
}

function counter(onProgress: CalibratedGroups['onProgress'], total: number): () => void {
  checkCallback(onProgress, 'onProgress');
  let done = 0;
  return () => {
    done++;
    onProgress?.({ done, total });
  };
}
