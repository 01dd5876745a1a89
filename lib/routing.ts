import { checkObject, expected, MolaeError, shapeText } from './errors.ts';
import { awaitNative } from './native.ts';
import { checkTensor, type Tensor, withResults } from './tensor.ts';

/** How router logits become expert ids and weights. */
export interface RouterSpec {
  /**
   * Scores of all experts from their logits: `softmax` over all of them, the `sigmoid` of each, or `sparsemixer`
   * (PhiMoE, arXiv 2409.12136): experts are chosen one after the other by their logits, and each one's score is its share
   * in a softmax over those that come near it, see `jitter`.
   */
  readonly scoring: 'softmax' | 'sigmoid' | 'sparsemixer';
  /** Experts per token. */
  readonly topK: number;
  /** Divide the chosen scores by their sum. */
  readonly renormalize: boolean;
  /** The last step: every weight times this. 1 by default. */
  readonly scalingFactor?: number | undefined;
  /** Choose groups of experts first; only their experts take part. */
  readonly groupLimit?: GroupLimit | undefined;
  /**
   * Of `sparsemixer`: a logit l comes near the largest one left, M, where (M − l) / max(|l|, M) ≤ 2·jitter. 0 by default.
   */
  readonly jitter?: number | undefined;
}

/** The experts lie in `numGroups` runs of equal length; the `chosenGroups` best of them take part. */
export interface GroupLimit {
  readonly numGroups: number;
  readonly chosenGroups: number;
  /** What a group counts for: its best score (DeepSeek-V2), or the sum of its two best (DeepSeek-V3). */
  readonly score: 'max' | 'top2';
}

/** What routing depends on beside logits and spec. */
export interface RouteOptions {
  /**
   * [experts] (f32), added to the scores wherever they are compared, not to those that become weights: DeepSeek-V3's
   * `e_score_correction_bias`.
   */
  readonly correctionBias?: Tensor<'f32'> | undefined;
}

/** Which experts every token goes to, and with what weight. */
export interface Routing {
  /** [tokens, topK]; an expert may appear once in a row. */
  readonly ids: Tensor<'i32'>;
  /** [tokens, topK] */
  readonly weights: Tensor<'f32'>;
}

/**
 * Routes tokens by their logits [tokens, experts] (f32): the topK best scores, the lower index on a tie, best first.
 *
 * @throws MolaeError `NON_FINITE` with the token whose logits have NaN or infinity; `INVALID_ARGUMENT` for a spec that
 * does not fit the number of experts or that the device cannot do.
 */
export async function route(logits: Tensor, spec: RouterSpec, options: RouteOptions = {}): Promise<Routing> {
  checkTensor(logits, 'logits');
  checkObject(spec, 'spec');
  checkObject(options, 'options');
  const { correctionBias } = options;
  if (correctionBias !== undefined) checkTensor(correctionBias, 'correctionBias');
  const { scoring, topK, renormalize, scalingFactor = 1, groupLimit, jitter = 0 } = spec;
  if (!Number.isSafeInteger(topK) || topK < 1) throw expected('a positive integer', 'topK', topK);
  if (typeof scoring !== 'string') throw expected('the name of a scoring', 'scoring', scoring);
  if (typeof renormalize !== 'boolean') throw expected('a boolean', 'renormalize', renormalize);
  if (logits.shape.length !== 2) {
    throw new MolaeError(
      'SHAPE_MISMATCH',
      `Expected shape [tokens, experts] for logits but received ${shapeText(logits.shape)}`,
    );
  }
  const { numGroups, chosenGroups, score } = checkedGroupLimit(groupLimit);
  const [tokens, experts] = logits.shape as [number, number];
  // Before there are results of that size.
  if (topK > experts) throw expected(`1 to ${experts}, the number of experts,`, 'topK', topK);
  const shape = [tokens, topK];
  const { device } = logits;
  const nativeSpec = {
    scoring,
    topK,
    renormalize,
    scalingFactor,
    numGroups,
    chosenGroups,
    groupScore: score,
    jitter,
    correctionBias: correctionBias?.native,
  };
  return withResults(device, async (make) => {
    const routing: Routing = { ids: make('i32', shape), weights: make('f32', shape) };
    await awaitNative(() =>
      device.native.route(logits.native, nativeSpec, routing.ids.native, routing.weights.native),
    );
    return routing;
  });
}

/** `numGroups` 0: no limit. */
function checkedGroupLimit(limit: GroupLimit | undefined): GroupLimit {
  if (limit === undefined) return { numGroups: 0, chosenGroups: 0, score: 'max' };
  checkObject(limit, 'groupLimit');
  const { numGroups, chosenGroups, score } = limit;
  if (!Number.isSafeInteger(numGroups) || numGroups < 1)
    throw expected('a positive integer', 'groupLimit.numGroups', numGroups);
  if (typeof score !== 'string') throw expected('max or top2', 'groupLimit.score', score);
  return { numGroups, chosenGroups, score };
}
