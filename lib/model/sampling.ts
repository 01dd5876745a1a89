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
    const largest = logits[best] as number;
    const weights = Float64Array.from(logits, (logit) => Math.exp((logit - largest) / this.#temperature));
    const order = this.#topP < 1 ? mostLikely(weights, this.#topP) : Int32Array.from(weights, (_, i) => i);
    const total = order.reduce((sum, token) => sum + (weights[token] as number), 0);
    let left = this.#uniform() * total;
    for (const token of order) {
      left -= weights[token] as number;
      if (left < 0) return token;
    }
    return best;
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

/** The fewest tokens, best first, that reach the share `topP` of all weight. */
function mostLikely(weights: Float64Array, topP: number): Int32Array {
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  const order = Int32Array.from(weights, (_, i) => i).sort(
    (a, b) => (weights[b] as number) - (weights[a] as number),
  );
  let reached = 0;
  const count = order.findIndex((token) => {
    reached += weights[token] as number;
    return reached >= topP * total;
  });
  return count < 0 ? order : order.subarray(0, count + 1);
}
