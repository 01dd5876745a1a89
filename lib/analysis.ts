import { describeConfig } from './checkpoint/families/index.ts';
import type { MoeSpec } from './checkpoint/family.ts';
import { isJsonObject, type JsonObject } from './checkpoint/json.ts';
import { maxLatentSize } from './checkpoint/latent-format.ts';
import { expected, MolaeError } from './errors.ts';
import { OPERATORS, type Operator } from './experts.ts';

/** One cost before and after: `ratio` is latent / dense, above 1 where the latent form is the worse one. */
export interface Comparison {
  readonly dense: number;
  readonly latent: number;
  readonly ratio: number;
}

/** The sizes that costs depend on, by the names of the design: n, m, N, K. */
export type LayerSizes = Pick<MoeSpec, 'hiddenSize' | 'intermediateSize' | 'numExperts' | 'topK'>;

/** How the experts of a layer are, or would be, factored. */
export interface Factorization {
  /** The number of experts of each group; they sum to N. */
  readonly groupSizes: readonly number[];
  /** r of each factored operator: one number, or one for each group. An operator left out stays dense. */
  readonly latentSizes: Readonly<Partial<Record<Operator, number | readonly number[]>>>;
  /** Gate and up share one B, and so one z: their r must be equal. Default false. */
  readonly sharedGateUp?: boolean;
}

export interface CostOptions {
  /** Bytes of one weight, and of one element sent between devices. Default 2 (bf16, f16). */
  readonly bytesPerParameter?: number;
  /** T: tokens of the batch that `weightBytesPerBatch` is for. Default 1. */
  readonly batch?: number;
  /** The measured probability, for each group, that a token uses it. Default: that of uniform routing. */
  readonly groupProbabilities?: readonly number[];
}

/** Costs of the routed experts. Router and shared experts are the same before and after, and not counted. */
export interface Costs {
  /** Elements stored. */
  readonly expertParameters: Comparison;
  /** Floating-point operations for one token, a multiply-add counted as two. */
  readonly flopsPerToken: Comparison;
  /** Bytes of weights that one token touches on average. */
  readonly weightBytesPerToken: Comparison;
  /** Bytes of weights that a batch of T tokens touches on average. */
  readonly weightBytesPerBatch: Comparison;
  /** Bytes that one token sends and receives when each group lives on another device and B is applied at the source. */
  readonly allToAllBytesPerToken: Comparison;
}

/**
 * p = 1 − C(N−k, K) / C(N, K): the probability that one of a token's K experts is in a given group of k, with all
 * K-subsets equally likely. As a product of at most min(k, K) ratios, for binomials overflow.
 */
export function groupProbability(numExperts: number, groupSize: number, topK: number): number {
  // C(N−k, K) / C(N, K) is symmetric in k and K; fewer factors round less.
  const factors = Math.min(groupSize, topK);
  const taken = Math.max(groupSize, topK);
  let missed = 1;
  for (let j = 0; j < factors; j++) missed *= Math.max(0, numExperts - taken - j) / (numExperts - j);
  return 1 - missed;
}

/**
 * E = G · p: how many distinct groups a token's K experts fall into on average, under uniform routing.
 *
 * @param groupSize k, a divisor of N.
 */
export function distinctGroups(numExperts: number, groupSize: number, topK: number): number {
  checkSizes({ hiddenSize: 1, intermediateSize: 1, numExperts, topK });
  checkGroupSize(numExperts, groupSize);
  return (numExperts / groupSize) * groupProbability(numExperts, groupSize, topK);
}

/** 1 − (1 − p)^T without cancellation: the probability that T tokens touch what one touches with probability p. */
function touched(probability: number, tokens: number): number {
  return -Math.expm1(tokens * Math.log1p(-probability));
}

/**
 * The costs of one MoE layer's routed experts, dense and latent. For equal groups and one r for all operators they are
 * the formulas of the design:
 *
 * - parameters: `3(N·m·r + G·r·n)` against `3·N·m·n`;
 * - FLOPs a token: `6r(n·E + m·K)` against `6·K·m·n`;
 * - weights touched by T tokens: `3r[m·N(1−(1−K/N)^T) + n·G(1−(1−p)^T)]` against `3·m·n·N(1−(1−K/N)^T)` elements;
 * - traffic a token: `E·(min(2r, n) + r)` against `2·E·n` elements. Where gate or up stays dense x itself must travel,
 *   where down does y; a shared gate/up B needs one z of width r.
 *
 * @throws INVALID_ARGUMENT for sizes that do not fit each other.
 */
export function layerCosts(
  sizes: LayerSizes,
  factorization: Factorization,
  options: CostOptions = {},
): Costs {
  checkSizes(sizes);
  const { hiddenSize: n, intermediateSize: m, numExperts: N, topK: K } = sizes;
  const bytes = positive('bytesPerParameter', options.bytesPerParameter ?? 2);
  const batch = positive('batch', options.batch ?? 1);
  const groups = layOutGroups(sizes, factorization, options.groupProbabilities);
  const denseOperators = OPERATORS.filter(
    (operator) => factorization.latentSizes[operator] === undefined,
  ).length;
  const expertTouched = (tokens: number) => touched(K / N, tokens);

  /** Elements of weights: all of them, or those that `ofExpert` and `ofGroup` (probabilities) leave. */
  const weights = (ofExpert: number, ofGroup: (probability: number) => number): number => {
    let total = denseOperators * N * m * n * ofExpert;
    for (const { size, probability, own, shared } of groups) {
      total += size * m * own * ofExpert + shared * n * ofGroup(probability);
    }
    return total;
  };
  const touchedBytes = (tokens: number): Comparison =>
    compare(
      3 * N * m * n * expertTouched(tokens) * bytes,
      weights(expertTouched(tokens), (probability) => touched(probability, tokens)) * bytes,
    );
  const traffic = groups.reduce(
    (total, { probability, sent, returned }) => total + probability * (sent + returned),
    0,
  );
  const distinct = groups.reduce((total, { probability }) => total + probability, 0);

  return {
    expertParameters: compare(
      3 * N * m * n,
      weights(1, () => 1),
    ),
    // One multiply-add for each weight of the K experts and of the groups that they fall into.
    flopsPerToken: compare(6 * K * m * n, 2 * weights(K / N, (probability) => probability)),
    weightBytesPerToken: touchedBytes(1),
    weightBytesPerBatch: touchedBytes(batch),
    allToAllBytesPerToken: compare(2 * distinct * n * bytes, traffic * bytes),
  };
}

/** One group, with its latent sizes already summed over the operators. */
interface GroupCosts {
  readonly size: number;
  readonly probability: number;
  /** Σ r over the factored operators: the width of each expert's own factors. */
  readonly own: number;
  /** Σ r over the shared factors: less than `own` when gate and up share theirs. */
  readonly shared: number;
  /** Elements that travel to the group's device and back. */
  readonly sent: number;
  readonly returned: number;
}

function layOutGroups(
  { hiddenSize: n, numExperts: N, topK: K }: LayerSizes,
  { groupSizes, latentSizes, sharedGateUp = false }: Factorization,
  probabilities: readonly number[] | undefined,
): GroupCosts[] {
  for (const size of groupSizes) positiveInteger('groupSizes', size);
  if (groupSizes.reduce((total, size) => total + size, 0) !== N) {
    throw expected(`sizes that sum to the ${N} experts`, 'groupSizes', groupSizes);
  }
  if (probabilities !== undefined && probabilities.length !== groupSizes.length) {
    throw expected(
      `one probability for each of ${groupSizes.length} groups`,
      'groupProbabilities',
      probabilities,
    );
  }
  return groupSizes.map((size, group) => {
    const [gate, up, down] = OPERATORS.map((operator) =>
      latentSizeOf(latentSizes[operator], operator, group, groupSizes),
    );
    if (sharedGateUp && (gate === undefined || gate !== up)) {
      throw expected('equal latent sizes of gate and up, as sharedGateUp needs them,', 'latentSizes', [
        gate,
        up,
      ]);
    }
    const own = (gate ?? 0) + (up ?? 0) + (down ?? 0);
    const shared = sharedGateUp ? own - (up ?? 0) : own;
    const probability = probabilities?.[group] ?? groupProbability(N, size, K);
    if (!(probability >= 0 && probability <= 1))
      throw expected('0 to 1', `groupProbabilities[${group}]`, probability);
    const needsInput = gate === undefined || up === undefined;
    const sent = needsInput ? n : Math.min(sharedGateUp ? gate : gate + up, n);
    return { size, probability, own, shared, sent, returned: down ?? n };
  });
}

function latentSizeOf(
  value: number | readonly number[] | undefined,
  operator: Operator,
  group: number,
  groupSizes: readonly number[],
): number | undefined {
  if (value === undefined) return undefined;
  if (typeof value === 'number') return positiveInteger(`latentSizes.${operator}`, value);
  if (value.length !== groupSizes.length) {
    throw expected(`one size for each of ${groupSizes.length} groups`, `latentSizes.${operator}`, value);
  }
  return positiveInteger(`latentSizes.${operator}[${group}]`, value[group]);
}

function compare(dense: number, latent: number): Comparison {
  return { dense, latent, ratio: latent / dense };
}

export interface PlanOptions extends CostOptions {
  /** k, a divisor of N. Without it the planner chooses, and says why in `reason`. */
  readonly groupSize?: number;
  /** r, the same for every factored operator, 1 to min(n, k·m). Not together with `targetRatio`. */
  readonly latentSize?: number;
  /** The share of the routed experts' parameters to remove at least, between 0 and 1. */
  readonly targetRatio?: number;
  /** What to factor. Default: gate, up and down. */
  readonly operators?: readonly Operator[];
  /** Gate and up share one B. Default false. */
  readonly sharedGateUp?: boolean;
  /** Parameters other than those of the routed experts, to compare whole models; a checkpoint's
   * `parameters − expertParameters`. */
  readonly otherParameters?: number;
}

/** A conversion's sizes and costs; the costs are sums over all MoE layers. */
export interface ConversionPlan extends Costs {
  readonly groupSize: number;
  readonly numGroups: number;
  readonly latentSize: number;
  readonly operators: readonly Operator[];
  readonly sharedGateUp: boolean;
  /** E: distinct groups a token, on average. */
  readonly distinctGroups: number;
  readonly moeLayers: readonly number[];
  /** Whether the planner chose the group size. */
  readonly groupSizeChosen: boolean;
  /** How the sizes came about, in a sentence for people. */
  readonly reason: string;
  /** The whole model, where `otherParameters` was given. */
  readonly parameters?: Comparison;
  /** The same costs for one layer. */
  readonly perLayer: Costs;
}

/**
 * Plans a conversion before any work: completes the sizes and tells the costs.
 *
 * - `targetRatio` takes the largest r that removes at least this share of the routed experts' parameters, rounded
 *   down to a multiple of 16 (from 16 on), the width of the kernels' tiles.
 * - With neither `latentSize` nor `targetRatio`, r = min(m, n), the paper's choice.
 * - Without `groupSize`, see {@link chooseForRatio} and {@link chooseForLatentSize}.
 *
 * @param model the sizes, or the object in a config.json of a supported family.
 * @throws INVALID_ARGUMENT for options that do not fit the model or each other, UNSUPPORTED_CHECKPOINT for a config of
 *   an unknown family.
 */
export function planConversion(model: MoeSpec | JsonObject, options: PlanOptions = {}): ConversionPlan {
  const spec = isSpec(model) ? model : describeConfig(model);
  checkSizes(spec);
  const request = checkOptions(spec, options);
  const { groupSize, latentSize, reason } = chooseSizes(spec, request);
  const costs = (k: number, r: number) => layerCosts(spec, factorization(spec, request, k, r), options);
  const perLayer = costs(groupSize, latentSize);
  const total = sumOverLayers(perLayer, spec.layers.length);
  const { expertParameters } = total;
  const others = options.otherParameters;
  return {
    groupSize,
    numGroups: spec.numExperts / groupSize,
    latentSize,
    operators: request.operators,
    sharedGateUp: request.sharedGateUp,
    distinctGroups: meanDistinctGroups(spec, groupSize, options.groupProbabilities),
    moeLayers: spec.layers,
    groupSizeChosen: request.groupSize === undefined,
    reason,
    ...total,
    ...(others === undefined
      ? {}
      : { parameters: compare(others + expertParameters.dense, others + expertParameters.latent) }),
    perLayer,
  };
}

/** Options after their checks. */
interface Request {
  readonly groupSize: number | undefined;
  readonly latentSize: number | undefined;
  readonly targetRatio: number | undefined;
  readonly operators: readonly Operator[];
  readonly sharedGateUp: boolean;
}

interface Choice {
  readonly groupSize: number;
  readonly latentSize: number;
  readonly reason: string;
}

function checkOptions(spec: MoeSpec, options: PlanOptions): Request {
  const { groupSize, latentSize, targetRatio, operators = OPERATORS, sharedGateUp = false } = options;
  if (operators.length === 0 || operators.some((operator) => !OPERATORS.includes(operator))) {
    throw expected(`some of ${OPERATORS.join(', ')}`, 'operators', operators);
  }
  if (sharedGateUp && !(operators.includes('gate') && operators.includes('up'))) {
    throw expected('operators with both gate and up, as sharedGateUp needs them,', 'operators', operators);
  }
  if (groupSize !== undefined) checkGroupSize(spec.numExperts, groupSize);
  if (options.groupProbabilities !== undefined && groupSize === undefined) {
    throw expected('a group size beside groupProbabilities', 'groupSize', groupSize);
  }
  if (options.otherParameters !== undefined && !(options.otherParameters >= 0)) {
    throw expected('a non-negative number', 'otherParameters', options.otherParameters);
  }
  if (latentSize !== undefined && targetRatio !== undefined) {
    throw expected('either latentSize or targetRatio, not both,', 'targetRatio', targetRatio);
  }
  if (targetRatio !== undefined && !(typeof targetRatio === 'number' && targetRatio > 0 && targetRatio < 1)) {
    throw expected('a number between 0 and 1, both excluded,', 'targetRatio', targetRatio);
  }
  if (latentSize !== undefined) checkLatentSize(spec, groupSize ?? spec.numExperts, latentSize);
  return {
    groupSize,
    latentSize,
    targetRatio,
    operators: OPERATORS.filter((operator) => operators.includes(operator)),
    sharedGateUp,
  };
}

function chooseSizes(spec: MoeSpec, request: Request): Choice {
  const { groupSize, targetRatio } = request;
  if (targetRatio !== undefined) {
    return groupSize === undefined
      ? chooseForRatio(spec, request, targetRatio)
      : sizesForRatio(spec, request, groupSize, targetRatio);
  }
  const latentSize = request.latentSize ?? Math.min(spec.hiddenSize, spec.intermediateSize);
  const source =
    request.latentSize === undefined ? 'latent size r = min(m, n), as in the paper' : 'latent size as given';
  if (groupSize === undefined) return chooseForLatentSize(spec, request, latentSize, source);
  checkLatentSize(spec, groupSize, latentSize);
  return { groupSize, latentSize, reason: `Group size as given; ${source}.` };
}

function sizesForRatio(spec: MoeSpec, request: Request, groupSize: number, targetRatio: number): Choice {
  const latentSize = largestLatentSize(spec, request, groupSize, targetRatio);
  if (latentSize === undefined) throw impossibleRatio(spec, request, groupSize, targetRatio);
  return { groupSize, latentSize, reason: `Group size as given; ${ratioReason(latentSize, targetRatio)}.` };
}

/** Below this share of the best retention, a candidate counts as worse and not as a tie. */
const RETENTION_TOLERANCE = 0.95;

/**
 * The group size for a given share of parameters to remove. For each divisor k of N from 2 on the budget fixes the
 * largest r, and r / min(n, k·m) is the share of the stacked experts' dimensions that survives: a measure
 * of what unstructured experts, the worst case, would keep. Of the k within 5% of the best, the one with the fewest
 * FLOPs wins, then the smaller. Weights may know better (clustered experts favour small groups); this rule sees sizes only.
 * On the trained tiny-qwen2-moe, ratios 0.1 to 0.75, its k had the least optimal error of all k or up to 9% more.
 */
function chooseForRatio(spec: MoeSpec, request: Request, targetRatio: number): Choice {
  const candidates = shareableGroupSizes(spec.numExperts).flatMap((groupSize) => {
    const latentSize = largestLatentSize(spec, request, groupSize, targetRatio);
    if (latentSize === undefined) return [];
    const retained = latentSize / maxLatentSize(spec.hiddenSize, spec.intermediateSize, groupSize);
    const flops = layerCosts(spec, factorization(spec, request, groupSize, latentSize)).flopsPerToken;
    return [{ groupSize, latentSize, retained, flops }];
  });
  if (candidates.length === 0) throw impossibleRatio(spec, request, spec.numExperts, targetRatio);
  const best = Math.max(...candidates.map(({ retained }) => retained));
  const close = candidates.filter(({ retained }) => retained >= RETENTION_TOLERANCE * best);
  const chosen = close.reduce((a, b) => (b.flops.latent < a.flops.latent ? b : a));
  const { groupSize, latentSize, retained, flops } = chosen;
  return {
    groupSize,
    latentSize,
    reason:
      `Chose group size ${groupSize}: of the ${candidates.length} divisors of ${spec.numExperts} that can remove ` +
      `${percent(targetRatio)}, ${close.length} ${close.length === 1 ? 'keeps' : 'keep'} about as many dimensions as the best ` +
      `(this one ${percent(retained)} of ${maxLatentSize(spec.hiddenSize, spec.intermediateSize, groupSize)}), and of those ` +
      `it computes least (${flops.ratio.toFixed(2)} times the dense FLOPs); ${ratioReason(latentSize, targetRatio)}.`,
  };
}

/**
 * The group size for a given r. With r fixed a larger group stores and computes less, and errs more. So the
 * smallest k from 2 on that neither stores nor computes more than the dense layer; else the smallest that
 * stores less; else, when nothing does, all experts in one group.
 */
function chooseForLatentSize(spec: MoeSpec, request: Request, latentSize: number, source: string): Choice {
  const { numExperts, hiddenSize, intermediateSize } = spec;
  const fitting = shareableGroupSizes(numExperts)
    .filter((groupSize) => latentSize <= maxLatentSize(hiddenSize, intermediateSize, groupSize))
    .map((groupSize) => ({
      groupSize,
      ...layerCosts(spec, factorization(spec, request, groupSize, latentSize)),
    }));
  const smaller = fitting.filter((costs) => costs.expertParameters.ratio < 1);
  const faster = smaller.find((costs) => costs.flopsPerToken.ratio <= 1);
  const pick = (groupSize: number, why: string): Choice => ({
    groupSize,
    latentSize,
    reason: `Chose group size ${groupSize}: ${why}; ${source}.`,
  });
  if (faster !== undefined) {
    return pick(
      faster.groupSize,
      'the smallest, so the most exact, that stores less and computes no more than the dense layer',
    );
  }
  if (smaller[0] !== undefined) {
    return pick(
      smaller[0].groupSize,
      'the smallest, so the most exact, that stores less; no group size computes less too',
    );
  }
  return pick(
    numExperts,
    'no group size stores less than the dense layer at this latent size, so the one that adds least',
  );
}

function ratioReason(latentSize: number, targetRatio: number): string {
  const rounding = latentSize % 16 === 0 ? ', a multiple of 16,' : '';
  return `latent size ${latentSize} is the largest${rounding} that removes at least ${percent(targetRatio)} of the routed experts' parameters`;
}

/** The largest r, a multiple of 16 where it reaches 16, that removes at least the share; undefined when none does. */
function largestLatentSize(
  spec: MoeSpec,
  request: Request,
  k: number,
  targetRatio: number,
): number | undefined {
  const { hiddenSize: n, intermediateSize: m, numExperts: N } = spec;
  const { operators, sharedGateUp } = request;
  const dense = 3 * N * m * n;
  const kept = (3 - operators.length) * N * m * n;
  const perRank = operators.length * N * m + (operators.length - (sharedGateUp ? 1 : 0)) * (N / k) * n;
  const removesEnough = (r: number) => {
    const latent = kept + perRank * r;
    return latent <= (1 - targetRatio) * dense && 1 - latent / dense >= targetRatio;
  };
  const estimate = Math.floor(((1 - targetRatio) * dense - kept) / perRank);
  const largest = Math.min(estimate, maxLatentSize(n, m, k));
  const rounded = largest >= 16 ? largest - (largest % 16) : largest;
  // An exact hit may fail the caller's own check in floating point: then one step less.
  const latentSize = removesEnough(rounded) ? rounded : rounded - (rounded > 16 ? 16 : 1);
  return latentSize >= 1 && removesEnough(latentSize) ? latentSize : undefined;
}

function impossibleRatio(
  spec: MoeSpec,
  request: Request,
  groupSize: number,
  targetRatio: number,
): MolaeError {
  const { expertParameters } = layerCosts(spec, factorization(spec, request, groupSize, 1));
  return new MolaeError(
    'INVALID_ARGUMENT',
    `A targetRatio of ${targetRatio} cannot be reached with group size ${groupSize} and operators ` +
      `${request.operators.join(', ')}: even latent size 1 removes only ${percent(1 - expertParameters.ratio)}`,
  );
}

function factorization(
  spec: MoeSpec,
  request: Request,
  groupSize: number,
  latentSize: number,
): Factorization {
  return {
    groupSizes: new Array<number>(spec.numExperts / groupSize).fill(groupSize),
    latentSizes: Object.fromEntries(request.operators.map((operator) => [operator, latentSize])),
    sharedGateUp: request.sharedGateUp,
  };
}

function meanDistinctGroups(
  spec: MoeSpec,
  groupSize: number,
  measured: readonly number[] | undefined,
): number {
  if (measured !== undefined) return measured.reduce((total, probability) => total + probability, 0);
  return distinctGroups(spec.numExperts, groupSize, spec.topK);
}

function sumOverLayers(perLayer: Costs, layers: number): Costs {
  const times = ({ dense, latent, ratio }: Comparison) => ({
    dense: dense * layers,
    latent: latent * layers,
    ratio,
  });
  return {
    expertParameters: times(perLayer.expertParameters),
    flopsPerToken: times(perLayer.flopsPerToken),
    weightBytesPerToken: times(perLayer.weightBytesPerToken),
    weightBytesPerBatch: times(perLayer.weightBytesPerBatch),
    allToAllBytesPerToken: times(perLayer.allToAllBytesPerToken),
  };
}

/** The divisors of N, ascending. */
export function divisors(numExperts: number): number[] {
  const small: number[] = [];
  const large: number[] = [];
  for (let d = 1; d * d <= numExperts; d++) {
    if (numExperts % d !== 0) continue;
    small.push(d);
    if (d * d !== numExperts) large.unshift(numExperts / d);
  }
  return [...small, ...large];
}

/** The group sizes in which something is shared: from 2 on, unless there is one expert only. */
function shareableGroupSizes(numExperts: number): number[] {
  return numExperts === 1 ? [1] : divisors(numExperts).filter((k) => k > 1);
}

function checkSizes({ hiddenSize, intermediateSize, numExperts, topK }: LayerSizes): void {
  positiveInteger('hiddenSize', hiddenSize);
  positiveInteger('intermediateSize', intermediateSize);
  positiveInteger('numExperts', numExperts);
  positiveInteger('topK', topK);
  if (topK > numExperts) throw expected(`at most the ${numExperts} experts`, 'topK', topK);
}

function checkGroupSize(numExperts: number, groupSize: number): void {
  positiveInteger('groupSize', groupSize);
  if (numExperts % groupSize === 0) return;
  const all = divisors(numExperts);
  const below = all.filter((d) => d < groupSize).slice(-2);
  const above = all.filter((d) => d > groupSize).slice(0, 2);
  throw expected(
    `a divisor of the ${numExperts} experts (near by: ${[...below, ...above].join(', ')})`,
    'groupSize',
    groupSize,
  );
}

function checkLatentSize(
  { hiddenSize, intermediateSize }: LayerSizes,
  groupSize: number,
  latentSize: number,
): void {
  const limit = maxLatentSize(hiddenSize, intermediateSize, groupSize);
  if (!Number.isSafeInteger(latentSize) || latentSize < 1 || latentSize > limit) {
    throw expected(`an integer from 1 to min(n, k·m) = ${limit}`, 'latentSize', latentSize);
  }
}

function positiveInteger(name: string, value: unknown): number {
  if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < 1)
    throw expected('a positive integer', name, value);
  return value;
}

function positive(name: string, value: unknown): number {
  if (typeof value !== 'number' || !(value > 0) || !Number.isFinite(value))
    throw expected('a positive number', name, value);
  return value;
}

function percent(share: number): string {
  return `${Number((100 * share).toFixed(2))}%`;
}

function isSpec(model: MoeSpec | JsonObject): model is MoeSpec {
  if (!isJsonObject(model)) throw expected('a MoeSpec or the object of a config.json', 'model', model);
  return 'numExperts' in model && 'layers' in model;
}
