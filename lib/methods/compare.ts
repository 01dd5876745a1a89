import { throwIfAborted } from '../errors.ts';
import { calibrate } from '../model/calibration.ts';
import type { Model } from '../model/model.ts';
import { perplexity } from '../model/perplexity.ts';
import type { CompressedLayer, Method } from './method.ts';

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
}

export interface ComparisonRow {
  /** `dense` for the model as it is. */
  readonly method: string;
  readonly groupSize: number | undefined;
  /** What was to be removed; 0 for the model as it is and for methods with a width of their own. */
  readonly targetRatio: number;
  /** Parameters of the routed experts, after / before. */
  readonly ratio: number;
  readonly expertParameters: number;
  /** Of the routed experts. */
  readonly bytes: number;
  readonly perplexity: number;
  /** Of compressing, the pass over the calibration text included. */
  readonly seconds: number;
}

/**
 * Compresses a model with every method to every target, in memory, and measures what each costs on held-out text. Yields
 * the model as it is first.
 */
export async function* compareMethods(model: Model, request: CompareRequest): AsyncGenerator<ComparisonRow> {
  const { evaluation, window, signal } = request;
  const before = model.checkpoint.expertParameters;
  const bytes = model.checkpoint.expertBytes;
  const dense = await perplexity(model, evaluation, { window, signal });
  yield {
    method: 'dense',
    groupSize: undefined,
    targetRatio: 0,
    ratio: 1,
    expertParameters: before,
    bytes,
    perplexity: dense.perplexity,
    seconds: 0,
  };
  for (const { method, targetRatio, groupSize } of combinations(request)) {
    throwIfAborted(signal);
    yield await compareOne(model, request, method, targetRatio, groupSize, before);
  }
}

function combinations({ methods, targetRatios, groupSizes }: CompareRequest) {
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

async function compareOne(
  model: Model,
  { calibration, evaluation, window, signal }: CompareRequest,
  method: Method,
  targetRatio: number,
  groupSize: number | undefined,
  before: number,
): Promise<ComparisonRow> {
  const started = performance.now();
  const compressed = new Map<number, CompressedLayer>();
  try {
    const compressor = await method.prepare({ model, calibration, window, targetRatio, groupSize, signal });
    await calibrate(
      model,
      calibration,
      async (layer) => {
        compressed.set(layer.layer, await compressor.compress(layer));
        return undefined;
      },
      { window, signal },
    );
    const seconds = (performance.now() - started) / 1000;
    for (const [layer, { block }] of compressed) model.substitute(layer, block);
    const after = await perplexity(model, evaluation, { window, signal });
    const total = (of: (layer: CompressedLayer) => number) =>
      [...compressed.values()].reduce((sum, layer) => sum + of(layer), 0);
    const expertParameters = total((layer) => layer.expertParameters);
    return {
      method: method.name,
      groupSize: compressor.groupSize,
      targetRatio,
      ratio: expertParameters / before,
      expertParameters,
      bytes: total((layer) => layer.expertBytes),
      perplexity: after.perplexity,
      seconds,
    };
  } finally {
    for (const [layer, { dispose }] of compressed) {
      model.substitute(layer, undefined);
      dispose();
    }
  }
}
