import { expected, MolaeError } from '../errors.ts';
import { mulberry32 } from '../random.ts';

/** How the next token is chosen from the logits: first by `temperature`, then `topK`, `topP` and `minP`, as others do. */
export interface SamplingOptions {
  /**
   * 0: always the most likely token, whatever else is given; towards infinity: any token. By default 1 where anything else is
   * given here, which means nothing without a draw, else 0.
   */
  readonly temperature?: number | undefined;
  /** Sample from this many of the most likely tokens; by default from all. */
  readonly topK?: number | undefined;
  /** Sample from the most likely tokens that together have this share of what `topK` leaves; by default 1, all of it. */
  readonly topP?: number | undefined;
  /** Sample from tokens with at least this share of the most likely one's probability; by default 0, any. */
  readonly minP?: number | undefined;
  /** The same seed gives the same tokens; by default 0. */
  readonly seed?: number | undefined;
}

/** Picks tokens from logits, reproducibly. */
export class Sampler {
  readonly #temperature: number;
  readonly #topK: number;
  readonly #topP: number;
  readonly #minP: number;
  readonly #uniform: () => number;

  constructor(options: SamplingOptions = {}) {
    const { topK = Number.POSITIVE_INFINITY, topP = 1, minP = 0, seed = 0 } = options;
    const draws = [options.topK, options.topP, options.minP, options.seed].some(
      (given) => given !== undefined,
    );
    const { temperature = draws ? 1 : 0 } = options;
    if (!(typeof temperature === 'number' && temperature >= 0 && Number.isFinite(temperature))) {
      throw expected('a non-negative number', 'temperature', temperature);
    }
    if (options.topK !== undefined && !(Number.isSafeInteger(topK) && topK > 0))
      throw expected('a positive integer', 'topK', topK);
    if (!(typeof topP === 'number' && topP > 0 && topP <= 1))
      throw expected('a number above 0, at most 1', 'topP', topP);
    if (!(typeof minP === 'number' && minP >= 0 && minP <= 1))
      throw expected('a number of 0 to 1', 'minP', minP);
    if (!Number.isSafeInteger(seed)) throw expected('an integer', 'seed', seed);
    this.#temperature = temperature;
    this.#topK = topK;
    this.#topP = topP;
    this.#minP = minP;
    this.#uniform = mulberry32(seed);
  }

  /** @throws MolaeError `NON_FINITE` for logits with NaN or infinity. */
  next(logits: Float32Array): number {
    const best = argmax(logits);
    if (this.#temperature === 0) return best;
    const weights = weightsOf(logits, logits[best] as number, this.#temperature);
    if (this.#topK >= weights.length && this.#topP === 1 && this.#minP === 0)
      return draw(weights, this.#uniform()) ?? best;
    const likely = this.#mostLikely(weights);
    const rank = draw(likely, this.#uniform());
    return rank === undefined ? best : tokenOfRank(weights, likely, rank);
  }

  /** The weights of the tokens to sample from, largest first. */
  #mostLikely(weights: Float64Array): Float64Array {
    if (this.#topK < weights.length) {
      const largest = largestFirst(weights, kthLargest(weights, this.#topK)).subarray(0, this.#topK);
      return this.#cut(largest, sum(largest));
    }
    const total = sum(weights);
    // What weighs less than this, be it all of them, sums to less than topP leaves out: it need not be sorted.
    const least = Math.max(this.#minP, ((1 - this.#topP) * total) / weights.length);
    return this.#cut(largestFirst(weights, least), total);
  }

  /** The first that reach the share `topP` of `total`, all where rounding keeps them from it; none too small for `minP`. */
  #cut(sorted: Float64Array, total: number): Float64Array {
    const likely = this.#topP < 1 ? sorted.subarray(0, howManyReach(sorted, this.#topP * total)) : sorted;
    const tooSmall = likely.findIndex((weight) => weight < this.#minP);
    return tooSmall < 0 ? likely : likely.subarray(0, tooSmall);
  }
}

function argmax(logits: Float32Array): number {
  let best = 0;
  for (let i = 0; i < logits.length; i++) {
    if (!Number.isFinite(logits[i]))
      throw new MolaeError('NON_FINITE', `The logits have NaN or infinity at token ${i}`);
    if ((logits[i] as number) > (logits[best] as number)) best = i;
  }
  return best;
}

// Plain loops from here on: callbacks and sorts of a whole vocabulary took most of the time of a token.

/** Probabilities but for a common factor; 1 for the most likely token. */
function weightsOf(logits: Float32Array, largest: number, temperature: number): Float64Array {
  const weights = new Float64Array(logits.length);
  for (let i = 0; i < logits.length; i++)
    weights[i] = Math.exp(((logits[i] as number) - largest) / temperature);
  return weights;
}

/** Where a share `uniform` of the sum of all weights is reached; undefined where rounding lets it be nowhere. */
function draw(weights: Float64Array, uniform: number): number | undefined {
  let left = uniform * sum(weights);
  for (let i = 0; i < weights.length; i++) {
    left -= weights[i] as number;
    if (left < 0) return i;
  }
  return undefined;
}

/** The weights of at least `least`, sorted. */
function largestFirst(weights: Float64Array, least: number): Float64Array {
  const chosen = new Float64Array(weights.length);
  let count = 0;
  for (let i = 0; i < weights.length; i++) {
    if ((weights[i] as number) >= least) chosen[count++] = weights[i] as number;
  }
  return chosen.subarray(0, count).sort().reverse();
}

/** The k-th largest of more than k weights: the smallest on a heap of the k largest so far, its smallest at the root. */
function kthLargest(weights: Float64Array, k: number): number {
  const heap = weights.slice(0, k).sort();
  for (let i = k; i < weights.length; i++) {
    const weight = weights[i] as number;
    if (weight > (heap[0] as number)) replaceRoot(heap, weight);
  }
  return heap[0] as number;
}

/** Puts a weight in the place of the smallest, and where it belongs. */
function replaceRoot(heap: Float64Array, weight: number): void {
  let at = 0;
  for (;;) {
    let child = 2 * at + 1;
    if (child + 1 < heap.length && (heap[child + 1] as number) < (heap[child] as number)) child++;
    if (child >= heap.length || (heap[child] as number) >= weight) break;
    heap[at] = heap[child] as number;
    at = child;
  }
  heap[at] = weight;
}

/** How many of the first weights sum to `wanted`; undefined where all of them do not. */
function howManyReach(weights: Float64Array, wanted: number): number | undefined {
  let reached = 0;
  for (let i = 0; i < weights.length; i++) {
    reached += weights[i] as number;
    if (reached >= wanted) return i + 1;
  }
  return undefined;
}

/** The token whose weight has this place among those sorted, the largest first; of equal ones the lower token comes first. */
function tokenOfRank(weights: Float64Array, sorted: Float64Array, rank: number): number {
  const weight = sorted[rank] as number;
  let token = -1;
  for (let equals = rank - sorted.indexOf(weight); equals >= 0; equals--)
    token = weights.indexOf(weight, token + 1);
  return token;
}

function sum(weights: Float64Array): number {
  let total = 0;
  for (let i = 0; i < weights.length; i++) total += weights[i] as number;
  return total;
}
