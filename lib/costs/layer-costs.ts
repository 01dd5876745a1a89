import { checkObject, expected } from '../errors.ts';
import { OPERATORS, type Operator } from '../operators.ts';
import { groupProbability } from './distinct-groups.ts';
import { checkSizes, type LayerSizes, positive, positiveInteger } from './sizes.ts';

/**
 * One cost before and after: `ratio` is latent / dense, what is left, above 1 where the latent form is the worse one. A
 * `targetRatio`, everywhere, is the share to remove: of the parameters it leaves a `ratio` of at most 1 − `targetRatio`.
 */
export interface Comparison {
  readonly dense: number;
  readonly latent: number;
  readonly ratio: number;
}

/** How the experts of a layer are, or would be, factored. */
export interface Factorization {
  /** The number of experts of each group; they sum to N. */
  readonly groupSizes: readonly number[];
  /** r of each factored operator: one number, or one for each group. An operator left out stays dense. */
  readonly latentSizes: Readonly<Partial<Record<Operator, number | readonly number[]>>>;
  /** Gate and up share one B, and so one z: their r must be equal. Default false. */
  readonly sharedGateUp?: boolean | undefined;
}

/** What costs depend on beside the sizes. */
export interface CostOptions {
  /** Bytes of one weight, and of one element sent between devices. Default 2 (bf16, f16). */
  readonly bytesPerParameter?: number | undefined;
  /** T: tokens of the batch that `weightBytesPerBatch` is for. Default 1. */
  readonly batch?: number | undefined;
  /** The measured probability, for each group, that a token uses it. Default: that of uniform routing. */
  readonly groupProbabilities?: readonly number[] | undefined;
  /** The same for the experts of each group. Default: K/N. */
  readonly expertProbabilities?: readonly (readonly number[])[] | undefined;
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
  checkObject(sizes, 'sizes');
  checkSizes(sizes);
  checkObject(factorization, 'factorization');
  checkObject(options, 'options');
  const { hiddenSize: n, intermediateSize: m, numExperts: N, topK: K } = sizes;
  const bytes = positive('bytesPerParameter', options.bytesPerParameter ?? 2);
  const batch = positive('batch', options.batch ?? 1);
  const groups = layOutGroups(sizes, factorization, options);
  const denseOperators = OPERATORS.filter(
    (operator) => factorization.latentSizes[operator] === undefined,
  ).length;

  /** Elements of weights: all of them, or the shares that experts and groups leave which are used with a probability. */
  const weights = (share: (probability: number) => number): number => {
    let total = 0;
    for (const { experts, probability, own, shared } of groups) {
      const used = experts.reduce((sum, { count, probability: p }) => sum + count * share(p), 0);
      total += (denseOperators * n + own) * m * used + shared * n * share(probability);
    }
    return total;
  };
  const denseWeights = (share: (probability: number) => number): number =>
    groups
      .flatMap(({ experts }) => experts)
      .reduce((sum, { count, probability }) => sum + 3 * m * n * count * share(probability), 0);
  const touchedBytes = (tokens: number): Comparison => {
    const share = (probability: number) => touched(probability, tokens);
    return compare(denseWeights(share) * bytes, weights(share) * bytes);
  };
  const traffic = groups.reduce(
    (total, { probability, sent, returned }) => total + probability * (sent + returned),
    0,
  );
  const distinct = groups.reduce((total, { probability }) => total + probability, 0);

  return {
    expertParameters: compare(
      3 * N * m * n,
      weights(() => 1),
    ),
    // One multiply-add for each weight of the K experts and of the groups that they fall into.
    flopsPerToken: compare(6 * K * m * n, 2 * weights((probability) => probability)),
    weightBytesPerToken: touchedBytes(1),
    weightBytesPerBatch: touchedBytes(batch),
    allToAllBytesPerToken: compare(2 * distinct * n * bytes, traffic * bytes),
  };
}

/** One group, with its latent sizes already summed over the operators. */
interface GroupCosts {
  /** Experts that tokens use with the same probability. */
  readonly experts: readonly { readonly count: number; readonly probability: number }[];
  /** That a token uses any of them. */
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
  { groupProbabilities: probabilities, expertProbabilities }: CostOptions,
): GroupCosts[] {
  checkGroupSizes(groupSizes, N);
  checkObject(latentSizes, 'latentSizes');
  if (probabilities !== undefined && !isListOf(groupSizes.length, probabilities)) {
    throw expected(
      `one probability for each of ${groupSizes.length} groups`,
      'groupProbabilities',
      probabilities,
    );
  }
  if (expertProbabilities !== undefined && !areListsOf(groupSizes, expertProbabilities)) {
    throw expected(
      'one probability for each expert of each group',
      'expertProbabilities',
      expertProbabilities,
    );
  }
  if (probabilities?.every((probability) => probability === 0)) {
    throw expected('a group that tokens use', 'groupProbabilities', probabilities);
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
    const probability = checkProbability(
      `groupProbabilities[${group}]`,
      probabilities?.[group] ?? groupProbability(N, size, K),
    );
    const experts = expertProbabilities?.[group]?.map((own, i) => {
      return { count: 1, probability: checkProbability(`expertProbabilities[${group}][${i}]`, own) };
    }) ?? [{ count: size, probability: K / N }];
    const needsInput = gate === undefined || up === undefined;
    const sent = needsInput ? n : Math.min(sharedGateUp ? gate : gate + up, n);
    return { experts, probability, own, shared, sent, returned: down ?? n };
  });
}

/** Bounded before it is looked through: a sparse array may have billions of items. */
function checkGroupSizes(groupSizes: readonly number[], numExperts: number): void {
  const wanted = `sizes that sum to the ${numExperts} experts`;
  if (!Array.isArray(groupSizes) || groupSizes.length > numExperts) {
    throw expected(wanted, 'groupSizes', groupSizes);
  }
  for (const size of groupSizes) positiveInteger('groupSizes', size);
  if (groupSizes.reduce((total, size) => total + size, 0) !== numExperts) {
    throw expected(wanted, 'groupSizes', groupSizes);
  }
}

function isListOf(length: number, value: unknown): boolean {
  return Array.isArray(value) && value.length === length;
}

function areListsOf(lengths: readonly number[], value: readonly unknown[]): boolean {
  return isListOf(lengths.length, value) && lengths.every((length, i) => isListOf(length, value[i]));
}

function checkProbability(name: string, value: unknown): number {
  if (typeof value === 'number' && value >= 0 && value <= 1) return value;
  throw expected('0 to 1', name, value);
}

function latentSizeOf(
  value: number | readonly number[] | undefined,
  operator: Operator,
  group: number,
  groupSizes: readonly number[],
): number | undefined {
  if (value === undefined) return undefined;
  if (typeof value === 'number') return positiveInteger(`latentSizes.${operator}`, value);
  if (!isListOf(groupSizes.length, value)) {
    throw expected(`one size for each of ${groupSizes.length} groups`, `latentSizes.${operator}`, value);
  }
  return positiveInteger(`latentSizes.${operator}[${group}]`, value[group]);
}

/** Two costs and their ratio. */
export function compare(dense: number, latent: number): Comparison {
  return { dense, latent, ratio: latent / dense };
}

/** 1 − (1 − p)^T without cancellation: the probability that T tokens touch what one touches with probability p. */
function touched(probability: number, tokens: number): number {
  if (tokens === 1) return probability; // to the last digit
  return -Math.expm1(tokens * Math.log1p(-probability));
}
