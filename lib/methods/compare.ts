import { checkWorkOptions, MolaeError, throwIfAborted } from '../errors.ts';
import type { Model } from '../model/model.ts';
import { perplexity } from '../model/perplexity.ts';
import { checkDenseModel, compressModel } from './compressed-model.ts';
import type { Method } from './method.ts';

/** Which methods `compareMethods` compares, at which targets and on which text. */
export interface CompareRequest {
  readonly methods: readonly Method[];
  /** Shares of the routed experts' parameters to remove. */
  readonly targetRatios: readonly number[];
  /** For methods that group; by default the choice of each. */
  readonly groupSizes?: readonly number[] | undefined;
  /** Token ids that methods may look at. */
  readonly calibration: ArrayLike<number>;
  /** Token ids that they are judged by: others. */
  readonly evaluation: ArrayLike<number>;
  readonly window?: number | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Called before each row. */
  readonly onProgress?:
    | ((progress: { readonly done: number; readonly total: number; readonly method: string }) => void)
    | undefined;
}

/** What one method at one target costs: one row of a comparison. */
export interface ComparisonRow {
  /** `dense` for the model as it is. */
  readonly method: string;
  readonly groupSize: number | undefined;
  /** What was to be removed; 0 for the model as it is and for methods with a width of their own. */
  readonly targetRatio: number;
  /** Parameters of the routed experts, after / before: what is left, at most 1 − `targetRatio`. */
  readonly ratio: number;
  readonly expertParameters: number;
  /** Of the routed experts. */
  readonly bytes: number;
  /** Of the routed experts, all layers, under uniform routing. */
  readonly flopsPerToken: number;
  readonly perplexity: number;
  /** Of compressing, the passes over the calibration text included for methods that look at it. */
  readonly seconds: number;
}

/**
 * Compresses a model with every method to every target, in memory, and measures what each costs on held-out text. Yields
 * the model as it is first. While a row is measured, the model runs with the compressed layers: so do other calls on it, and
 * another comparison is refused.
 *
 * @throws MolaeError before any work: `INVALID_ARGUMENT` for a target that a method cannot meet, and for a model that
 * streams (what replaces a layer uses parts of it later); `UNSUPPORTED_CHECKPOINT` for one that was converted.
 */
export async function* compareMethods(model: Model, request: CompareRequest): AsyncGenerator<ComparisonRow> {
  const { signal, onProgress } = request;
  checkWorkOptions(request);
  const combinations = combine(request);
  checkDenseModel(model);
  for (const combination of combinations) check(model, request, combination);
  const total = combinations.length + 1;
  onProgress?.({ done: 0, total, method: 'dense' });
  yield await measureDense(model, request);
  for (const [i, combination] of combinations.entries()) {
    throwIfAborted(signal);
    onProgress?.({ done: i + 1, total, method: combination.method.name });
    yield await compareOne(model, request, combination);
  }
}

interface Combination {
  readonly method: Method;
  readonly targetRatio: number;
  readonly groupSize: number | undefined;
}

function combine({ methods, targetRatios, groupSizes }: CompareRequest): Combination[] {
  return methods.flatMap((method) =>
    (method.ownWidth ? [0] : targetRatios).flatMap((targetRatio) =>
      (method.grouped ? (groupSizes ?? [undefined]) : [undefined]).map((groupSize) => ({
        method,
        targetRatio,
        groupSize,
      })),
    ),
  );
}

function check(
  model: Model,
  { calibration, window }: CompareRequest,
  { method, targetRatio, groupSize }: Combination,
): void {
  try {
    method.check({ model, calibration, window, targetRatio, groupSize });
  } catch (error) {
    if (!(error instanceof MolaeError)) throw error;
    throw new MolaeError(error.code, `${method.name}: ${error.message}`, { cause: error });
  }
}

async function measureDense(
  model: Model,
  { evaluation, window, signal }: CompareRequest,
): Promise<ComparisonRow> {
  const { spec, expertParameters, expertBytes } = model.checkpoint;
  const { layers, topK, intermediateSize, hiddenSize } = spec;
  const { perplexity: measured } = await perplexity(model, evaluation, { window, signal });
  return {
    method: 'dense',
    groupSize: undefined,
    targetRatio: 0,
    ratio: 1,
    expertParameters,
    bytes: expertBytes,
    flopsPerToken: 6 * layers.length * topK * intermediateSize * hiddenSize,
    perplexity: measured,
    seconds: 0,
  };
}

/** Of a window: what takes a method that sees only weights through the layers. */
const LEAST_TOKENS = 2;

async function compareOne(
  model: Model,
  { calibration, evaluation, window, signal }: CompareRequest,
  { method, targetRatio, groupSize }: Combination,
): Promise<ComparisonRow> {
  const started = performance.now();
  const compressor = await method.prepare({ model, calibration, window, targetRatio, groupSize, signal });
  const ids = method.weightsOnly ? Array.from(calibration).slice(0, LEAST_TOKENS) : calibration;
  using compressed = await compressModel(model, compressor, ids, { window, signal });
  const seconds = (performance.now() - started) / 1000;
  const after = await compressed.run(() => perplexity(model, evaluation, { window, signal }));
  const { expertParameters, expertBytes, flopsPerToken } = compressed.costs;
  return {
    method: method.name,
    groupSize: compressor.groupSize,
    targetRatio,
    ratio: expertParameters / model.checkpoint.expertParameters,
    expertParameters,
    bytes: expertBytes,
    flopsPerToken,
    perplexity: after.perplexity,
    seconds,
  };
}
