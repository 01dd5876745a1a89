import { expected, MolaeError } from './errors.ts';
import { awaitNative } from './native.ts';
import { checkTensor, type Tensor } from './tensor.ts';

/** How router logits become expert ids and weights. */
export interface RouterSpec {
  /** Scores of all experts from their logits. */
  readonly scoring: 'softmax';
  /** Experts per token. */
  readonly topK: number;
  /** Divide the chosen scores by their sum. */
  readonly renormalize: boolean;
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
 * @throws MolaeError `NON_FINITE` with the token whose logits have NaN or infinity.
 */
export async function route(logits: Tensor, spec: RouterSpec): Promise<Routing> {
  checkTensor(logits, 'logits');
  const { scoring, topK, renormalize } = spec;
  if (!Number.isSafeInteger(topK) || topK < 1) throw expected('a positive integer', 'topK', topK);
  if (typeof renormalize !== 'boolean') throw expected('a boolean', 'renormalize', renormalize);
  if (logits.shape.length !== 2) {
    throw new MolaeError(
      'SHAPE_MISMATCH',
      `Expected shape [tokens, experts] for logits but received [${logits.shape.join(', ')}]`,
    );
  }
  const shape = [logits.shape[0] as number, topK];
  const { device } = logits;
  const routing: Routing = { ids: device.empty('i32', shape), weights: device.empty('f32', shape) };
  await awaitNative(() =>
    device.native.route(
      logits.native,
      scoring,
      topK,
      renormalize,
      routing.ids.native,
      routing.weights.native,
    ),
  );
  return routing;
}
