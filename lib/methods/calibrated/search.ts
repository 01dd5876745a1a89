import type { MoeSpec } from '../../checkpoint/family.ts';
import { type BlockDType, checkBlockDType } from '../../dtype.ts';
import { expected, expectedCount, MolaeError, throwIfAborted } from '../../errors.ts';
import type { LatentExperts } from '../../experts.ts';
import type { CalibratedSteps } from '../../factorization/calibrated-group.ts';
import { divisors, type Partition } from '../../factorization/groups.ts';
import type { CalibrationLayer } from '../../model/calibration-layer.ts';
import type { Model } from '../../model/model.ts';
import { lossesByWindow, type WindowLoss } from '../../model/perplexity.ts';
import { groupRouting } from '../../model/routing-statistics.ts';
import { checkWindow, cutWindows, defaultWindow } from '../../model/windows.ts';
import { OPERATORS, type Operator } from '../../operators.ts';
import { checkDenseModel, compressModel } from '../compressed-model.ts';
import { AffinityGrouping, checkGrouping, type Grouping, groupsByAffinity } from '../grouping/grouping.ts';
import type { Compressor } from '../method.ts';
import { costsOf } from '../sizes.ts';
import {
  type Allocation,
  allocateOverLayers,
  type LayerLatentSizes,
  unreachableReason,
} from './allocation.ts';
import { calibratedCompressor } from './calibrated.ts';
import type { CalibratedForm } from './form.ts';

/** What `searchCalibrated` searches, with which text and for what target. */
export interface SearchOptions extends CalibratedSteps, Grouping {
  /** Token ids: every fourth window of them judges, the others calibrate. */
  readonly calibration: ArrayLike<number>;
  /** Tokens that attend to each other; by default 256. */
  readonly window?: number | undefined;
  /** Remove at least this share of the routed experts' parameters. */
  readonly targetRatio: number;
  /** k, where it is not to be searched for. */
  readonly groupSize?: number | undefined;
  /** Whether gate and up share a B, where that is not to be searched for. */
  readonly sharedGateUp?: boolean | undefined;
  /** What is factorized, where that is not to be searched for. */
  readonly operators?: readonly Operator[] | undefined;
  /** The blocks that the factors are to come in: candidates are judged with theirs in such. CPU only. */
  readonly quantize?: BlockDType | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Called before each candidate; how many there are in all is known by the end only. */
  readonly onCandidate?: ((candidate: SearchedForm) => void) | undefined;
}

/** A form that the experts could take. */
export interface SearchedForm extends CalibratedForm {
  readonly operators: readonly Operator[];
  readonly sharedGateUp: boolean;
}

/** What it costs, in quality and otherwise. */
export interface SearchCandidate extends SearchedForm {
  /** On the windows that judge. */
  readonly perplexity: number;
  /** By how much its mean loss is above the lowest of all candidates, in nats per token. */
  readonly excessLoss: number;
  /** The standard error of that difference, over windows. */
  readonly standardError: number;
  /** Parameters of the routed experts, after / before: what is left, at most 1 − `targetRatio`. */
  readonly ratio: number;
  /** Of the routed experts, all layers, by the routing of the text that calibrates. */
  readonly flopsPerToken: number;
  readonly seconds: number;
}

/** What a search tried, and what it takes. */
export interface SearchReport {
  /** In the order in which they were tried. */
  readonly candidates: readonly SearchCandidate[];
  /** Forms that cannot meet the target, and why. */
  readonly unreachable: readonly (SearchedForm & { readonly reason: string })[];
  readonly chosen: SearchCandidate;
  readonly tokens: { readonly calibration: number; readonly heldOut: number };
}

/**
 * Tries forms of latent experts on a held-out part of the calibration text: group sizes first; then, with the best of
 * them, one B for gate and up, and down left dense (with less for gate and up). Each is converted in memory, with experts
 * grouped as asked for where a group size leaves a choice, and with factors in blocks where they are to be stored so.
 *
 * Of all candidates whose loss is within one standard error of the lowest (of the paired difference, over windows), the
 * one that computes least is taken.
 *
 * @throws MolaeError `INVALID_ARGUMENT` for too little text, where everything is given already, for a model that streams,
 * and where no candidate meets the target.
 */
export async function searchCalibrated(model: Model, options: SearchOptions): Promise<SearchReport> {
  checkDenseModel(model);
  const { spec } = model.checkpoint;
  const { targetRatio, operators, sharedGateUp, quantize } = options;
  if (quantize !== undefined) checkBlockDType(quantize, 'quantize');
  checkGrouping(options, options.groupSize, spec.numExperts);
  if (!(targetRatio > 0 && targetRatio < 1))
    throw expected('a share between 0 and 1', 'targetRatio', targetRatio);
  const split = splitText(model, options);
  const trial = new Trials(model, options, split);
  const plain = { operators: operators ?? OPERATORS, sharedGateUp: sharedGateUp ?? false };
  const sizes = options.groupSize === undefined ? searchedGroupSizes(spec) : [options.groupSize];
  const others: Partial<SearchedForm>[] = [
    ...(sharedGateUp === undefined && hasGateAndUp(plain.operators) ? [{ sharedGateUp: true }] : []),
    ...(operators === undefined ? [{ operators: ['gate', 'up'] as const }] : []),
  ];
  if (sizes.length + others.length < 2) {
    throw new MolaeError(
      'INVALID_ARGUMENT',
      'Nothing is left to search for: groupSize, sharedGateUp and operators are given',
    );
  }
  for (const groupSize of sizes) await trial.run({ groupSize, ...plain });
  const { groupSize } = trial.best ?? { groupSize: sizes[0] as number };
  for (const other of others) await trial.run({ groupSize, ...plain, ...other });
  return trial.report();
}

/** Up to five divisors of the number of experts, from 1 to all of them, evenly on a logarithmic scale. */
export function searchedGroupSizes({ numExperts }: Pick<MoeSpec, 'numExperts'>): number[] {
  const all = divisors(numExperts);
  const nearest = (wanted: number) =>
    all.reduce((a, b) => (Math.abs(Math.log(b / wanted)) < Math.abs(Math.log(a / wanted)) ? b : a));
  return [...new Set([0, 1, 2, 3, 4].map((i) => nearest(numExperts ** (i / 4))))];
}

function hasGateAndUp(operators: readonly Operator[]): boolean {
  return operators.includes('gate') && operators.includes('up');
}

/** One of so many windows judges. */
const HELD_OUT = 4;
/** Fewer say nothing of how much they differ. */
const FEWEST_HELD_OUT = 8;

interface Split {
  readonly calibration: readonly number[];
  readonly heldOut: readonly number[];
  readonly window: number;
}

function splitText(model: Model, { calibration, window = defaultWindow(model) }: SearchOptions): Split {
  checkWindow(model, window);
  const windows = cutWindows(calibration, window);
  const whole = windows.filter(({ length }) => length === window);
  if (whole.length < HELD_OUT * FEWEST_HELD_OUT) {
    throw expectedCount(
      `at least ${HELD_OUT * FEWEST_HELD_OUT} windows of ${window} tokens to search with`,
      'calibration',
      `${calibration.length} tokens`,
    );
  }
  const isHeldOut = (_: unknown, i: number) => i % HELD_OUT === HELD_OUT - 1;
  return {
    calibration: whole.filter((own, i) => !isHeldOut(own, i)).flat(),
    heldOut: whole.filter(isHeldOut).flat(),
    window,
  };
}

interface Trial extends SearchedForm {
  readonly losses: readonly WindowLoss[];
  readonly ratio: number;
  readonly flopsPerToken: number;
  readonly seconds: number;
}

/** Candidates, one after the other. */
class Trials {
  readonly #model: Model;
  readonly #options: SearchOptions;
  readonly #split: Split;
  readonly #grouping: AffinityGrouping;
  readonly #done: Trial[] = [];
  readonly #unreachable: (SearchedForm & { readonly reason: string })[] = [];

  constructor(model: Model, options: SearchOptions, split: Split) {
    this.#model = model;
    this.#options = options;
    this.#split = split;
    this.#grouping = new AffinityGrouping(options);
  }

  get best(): SearchCandidate | undefined {
    return this.#done.length === 0 ? undefined : chooseCandidate(compareTrials(this.#done));
  }

  async run(form: SearchedForm): Promise<void> {
    const { signal, onCandidate, quantize, ...steps } = this.#options;
    const { calibration, heldOut, window } = this.#split;
    throwIfAborted(signal);
    onCandidate?.(form);
    const started = performance.now();
    const model = this.#model;
    const allocation = await this.#allocate(form);
    if (!allocation) return;
    const { groups, latentSizes } = allocation;
    const compressor = calibratedCompressor(
      { signal },
      { ...form, groupsOf: groups.size > 0 ? (layer) => groups.get(layer) as Partition : undefined },
      (layer) => latentSizes.get(layer) as LayerLatentSizes,
      { ...stepsOf(steps), dtype: quantize },
    );
    using compressed = await compressModel(model, asRouted(compressor), calibration, { window, signal });
    const seconds = (performance.now() - started) / 1000;
    const losses = await compressed.run(() => lossesByWindow(model, heldOut, { window, signal }));
    const { expertParameters, flopsPerToken } = compressed.costs;
    const ratio = expertParameters / model.checkpoint.expertParameters;
    this.#done.push({ ...form, losses, ratio, flopsPerToken, seconds });
  }

  report(): SearchReport {
    if (this.#done.length === 0) {
      const [first] = this.#unreachable;
      throw new MolaeError(
        'INVALID_ARGUMENT',
        `No candidate removes the share ${this.#options.targetRatio} of the experts' parameters: ${first?.reason}`,
      );
    }
    const { calibration, heldOut } = this.#split;
    const candidates = compareTrials(this.#done);
    return {
      candidates,
      unreachable: this.#unreachable,
      chosen: chooseCandidate(candidates),
      tokens: { calibration: calibration.length, heldOut: heldOut.length },
    };
  }

  /** Nothing where the form cannot meet the target. */
  async #allocate(form: SearchedForm): Promise<Allocation | undefined> {
    const { targetRatio, quantize, signal } = this.#options;
    const { calibration, window } = this.#split;
    const quantized = quantize !== undefined;
    const { groupSize } = form;
    const hasChoice = groupsByAffinity(this.#options, groupSize, this.#model.checkpoint.spec.numExperts);
    const groupsOf = hasChoice
      ? (layer: CalibrationLayer) => this.#grouping.groups(layer, groupSize)
      : undefined;
    const text = { model: this.#model, calibration, window, signal };
    const request = { ...text, targetRatio, quantized, groupsOf, ...form };
    const reason = unreachableReason(request);
    if (reason === undefined) return allocateOverLayers(request);
    this.#unreachable.push({ ...form, reason });
    return undefined;
  }
}

/** With costs by the routing of the calibration text, not of a uniform one: groups that fire together compute less. */
function asRouted(compressor: Compressor): Compressor {
  return {
    ...compressor,
    async compress(layer) {
      const compressed = await compressor.compress(layer);
      const experts = compressed.block.experts as LatentExperts;
      const routing = await groupRouting(layer.routing, experts.groups);
      return { ...compressed, ...costsOf(experts, layer.block.spec.topK, routing) };
    },
  };
}

/** @internal The steps among other options. */
export function stepsOf({
  shrinkage,
  refit,
  weighRows,
  refitDown,
  alternations,
}: CalibratedSteps): CalibratedSteps {
  return { shrinkage, refit, weighRows, refitDown, alternations };
}

/** Candidates beside the one with the lowest loss. */
function compareTrials(trials: readonly Trial[]): SearchCandidate[] {
  const best = trials.reduce((a, b) => (totalLoss(b.losses) < totalLoss(a.losses) ? b : a));
  return trials.map(({ losses, ...trial }) => {
    const { mean, standardError } = pairedDifference(losses, best.losses);
    const tokens = losses.reduce((sum, own) => sum + own.tokens, 0);
    return {
      ...trial,
      perplexity: Math.exp(totalLoss(losses) / tokens),
      excessLoss: mean,
      standardError,
    };
  });
}

function totalLoss(losses: readonly WindowLoss[]): number {
  return losses.reduce((sum, { total }) => sum + total, 0);
}

/** @internal Of the losses per token on the same windows: the mean, and its standard error over windows. */
export function pairedDifference(
  losses: readonly WindowLoss[],
  others: readonly WindowLoss[],
): { readonly mean: number; readonly standardError: number } {
  const differences = losses.map(({ total }, i) => total - (others[i] as WindowLoss).total);
  const tokens = losses.reduce((sum, own) => sum + own.tokens, 0);
  const count = differences.length;
  const mean = differences.reduce((sum, value) => sum + value, 0) / count;
  const squares = differences.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  return {
    mean: (mean * count) / tokens,
    standardError: (Math.sqrt((squares * count) / Math.max(1, count - 1)) || 0) / tokens,
  };
}

/** @internal The one that computes least of those within one standard error of the lowest loss. */
export function chooseCandidate<
  Candidate extends Pick<SearchCandidate, 'excessLoss' | 'standardError' | 'flopsPerToken'>,
>(candidates: readonly Candidate[]): Candidate {
  return candidates
    .filter(({ excessLoss, standardError }) => excessLoss <= standardError)
    .reduce((a, b) => {
      if (b.flopsPerToken !== a.flopsPerToken) return b.flopsPerToken < a.flopsPerToken ? b : a;
      return b.excessLoss < a.excessLoss ? b : a;
    });
}
