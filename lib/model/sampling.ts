import { expected, MolaeError } from '../errors.ts';
import { mulberry32 } from '../random.ts';

/** How the next token is chosen from the logits. */
export interface SamplingOptions {
  /**
   * 0: always the most likely token, whatever else is given; towards infinity: any token. By default 1 where `topP` or `seed`
   * is given, which mean nothing without a draw, else 0.
   */
  readonly temperature?: number | undefined;
  /** Sample from the most likely tokens that together have this probability; by default 1, all of them. */
  readonly topP?: number | undefined;
  /** The same seed gives the same tokens; by default 0. */
  readonly seed?: number | undefined;
}

/** Picks tokens from logits, reproducibly. */
export class Sampler {
  readonly #temperature: number;
  readonly #topP: number;
  readonly #uniform: () => number;

  constructor(options: SamplingOptions = {}) {
    const draws = options.topP !== undefined || options.seed !== undefined;
    const { temperature = draws ? 1 : 0, topP = 1, seed = 0 } = options;
    if (!(typeof temperature === 'number' && temperature >= 0 && Number.isFinite(temperature))) {
      throw expected('a non-negative number', 'temperature', temperature);
    }
    if (!(typeof topP === 'number' && topP > 0 && topP <= 1))
      throw expected('a number above 0, at most 1', 'topP', topP);
    if (!Number.isSafeInteger(seed)) throw expected('an integer', 'seed', seed);
    this.#temperature = temperature;
    this.#topP = topP;
    this.#uniform = mulberry32(seed);
  }

  /** @throws MolaeError `NON_FINITE` for logits with NaN or infinity. */
  next(logits: Float32Array): number {
    const best = argmax(logits);
    if (this.#temperature === 0) return best;
    const weights = weightsOf(logits, logits[best] as number, this.#temperature);
    const kept = this.#topP < 1 ? nucleus(weights, this.#topP) : weights;
    const drawn = draw(kept, this.#uniform());
    if (drawn === undefined) return best;
    return kept === weights ? drawn : tokenOfRank(weights, kept, drawn);
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

/** The fewest weights, largest first, that reach the share `topP` of all weight. */
function nucleus(weights: Float64Array, topP: number): Float64Array {
  const total = sum(weights);
  // What weighs less than this, be it the whole vocabulary, sums to less than topP leaves out: it need not be sorted.
  const least = ((1 - topP) * total) / weights.length;
  const likely = largestFirst(weights, least);
  // All where rounding keeps them from reaching it: what is missing then is too little to be drawn.
  return likely.subarray(0, howManyReach(likely, topP * total));
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
