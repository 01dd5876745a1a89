import type { MoeSpec } from '../checkpoint/family.ts';
import { throwIfAborted } from '../errors.ts';
import type { Experts } from '../experts.ts';
import type { MoeBlock } from '../moe-block.ts';
import type { Routing } from '../routing.ts';
import type { Tensor } from '../tensor.ts';
import { batchOfSequences } from './batch.ts';
import type { DecoderLayer } from './layer.ts';
import type { Model } from './model.ts';
import { checkWindow, cutWindows, defaultWindow } from './perplexity.ts';

/** A MoE layer with everything that reaches it on the calibration text. */
export interface CalibrationLayer {
  /** The decoder layer's index. */
  readonly layer: number;
  readonly block: MoeBlock;
  /** Inputs of the router and the experts [tokens, n]. Valid until the callback's promise settles, as is `routing`. */
  readonly x: Tensor<'f32'>;
  readonly routing: Routing;
}

export interface CalibrationOptions {
  /** Tokens that attend to each other; by default 256. */
  readonly window?: number | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((progress: { readonly done: number; readonly total: number }) => void) | undefined;
}

/**
 * Takes all calibration tokens through the model one layer at a time, and calls `visit` at each MoE layer. Experts that
 * `visit` returns are used in place of the layer's own from there on (the caller disposes them).
 *
 * Memory: three matrices [tokens, n] in f32, whatever the number of layers; one layer's weights where the model streams.
 */
export async function calibrate(
  model: Model,
  ids: ArrayLike<number>,
  visit: (layer: CalibrationLayer) => Promise<Experts | undefined>,
  options: CalibrationOptions = {},
): Promise<void> {
  const { window = defaultWindow(model), signal, onProgress } = options;
  checkWindow(model, window);
  const windows = cutWindows(ids, window);
  const spans = tokenSpans(windows);
  using hidden = await model.turn(signal, (context) => model.embed(context, windows.flat()));
  using inputs = model.device.empty('f32', hidden.shape);
  // Nobody sees what the last MoE layer puts out.
  const last = Math.max(...model.checkpoint.spec.layers);
  for (let index = 0; index <= last; index++) {
    throwIfAborted(signal);
    await model.withLayer(index, async (layer) => {
      for (const { begin, end, lengths } of spans) {
        const batch = batchOfSequences(model.device, lengths);
        using _ = batch.positions;
        using x = hidden.rows(begin, end);
        using h = inputs.rows(begin, end);
        await model.turn(signal, async (context) => {
          layer.attend(context, x, batch);
          layer.normalize(context, x, h);
          await context.operations.settle();
        });
      }
      const output = index < last ? hidden : undefined;
      await applyLayer(model, layer, output, inputs, spans, visit, signal);
    });
    onProgress?.({ done: index + 1, total: last + 1 });
  }
}

/** Evenly spaced windows of a text, `tokens` of it at most (one window at least); all of it where it is no longer. */
export function sampleWindows(ids: ArrayLike<number>, tokens: number, window: number): number[] {
  const all = Array.from(ids);
  const wanted = Math.max(1, Math.floor(tokens / window));
  const count = Math.floor(all.length / window);
  if (count <= wanted) return all;
  return Array.from({ length: wanted }, (_, i) => Math.floor((i * count) / wanted) * window).flatMap(
    (begin) => all.slice(begin, begin + window),
  );
}

/**
 * Calibration tokens that serve the experts of a model: 4096 for each on average, 16,384 to 131,072 in all. More gained
 * nothing where it was measured (docs/choosing.md).
 */
export function calibrationTokens({ numExperts, topK }: Pick<MoeSpec, 'numExperts' | 'topK'>): number {
  return Math.min(131_072, Math.max(16_384, Math.ceil(numExperts / topK) * 4096));
}

interface Span {
  readonly begin: number;
  readonly end: number;
  /** Of the windows in it. */
  readonly lengths: readonly number[];
}

/** Tokens that go through a layer together. */
const SPAN_TOKENS = 4096;

function tokenSpans(windows: readonly number[][]): Span[] {
  const perSpan = Math.max(1, Math.floor(SPAN_TOKENS / (windows[0]?.length ?? 1)));
  const spans: Span[] = [];
  let begin = 0;
  for (let first = 0; first < windows.length; first += perSpan) {
    const lengths = windows.slice(first, first + perSpan).map((ids) => ids.length);
    const end = begin + lengths.reduce((sum, length) => sum + length, 0);
    spans.push({ begin, end, lengths });
    begin = end;
  }
  return spans;
}

/** Adds the output of a layer's experts to `hidden`, where that is wanted. */
async function applyLayer(
  model: Model,
  layer: DecoderLayer,
  hidden: Tensor | undefined,
  inputs: Tensor<'f32'>,
  spans: readonly Span[],
  visit: (layer: CalibrationLayer) => Promise<Experts | undefined>,
  signal: AbortSignal | undefined,
): Promise<void> {
  const routing = await layer.route(inputs);
  try {
    const replacement = layer.isMoe
      ? await visit({ layer: layer.index, block: layer.feedForward as MoeBlock, x: inputs, routing })
      : undefined;
    if (!hidden) return;
    for (const { begin, end } of spans) {
      using x = hidden.rows(begin, end);
      using h = inputs.rows(begin, end);
      using ids = routing.ids.rows(begin, end);
      using weights = routing.weights.rows(begin, end);
      await model.turn(signal, async (context) => {
        layer.applyExperts(context, h, { ids, weights }, x, replacement);
        await context.operations.settle();
      });
    }
  } finally {
    routing.ids.dispose();
    routing.weights.dispose();
  }
}

/** What calibration text says of the routing of a layer. */
export interface RoutingStatistics {
  readonly tokens: number;
  /** How often each expert was chosen. */
  readonly expertCounts: Float64Array;
  /** [N, N]: how often two experts were chosen for the same token. */
  readonly coActivation: Float64Array;
}

/** Counts choices and pairs of choices. */
export async function routingStatistics({ ids }: Routing, numExperts: number): Promise<RoutingStatistics> {
  const [tokens, topK] = ids.shape as [number, number];
  const chosen = await ids.read();
  const expertCounts = new Float64Array(numExperts);
  const coActivation = new Float64Array(numExperts * numExperts);
  for (let t = 0; t < tokens; t++) {
    const experts = chosen.subarray(t * topK, (t + 1) * topK);
    for (const a of experts) {
      (expertCounts[a] as number) += 1;
      for (const b of experts) if (a !== b) (coActivation[a * numExperts + b] as number) += 1;
    }
  }
  return { tokens, expertCounts, coActivation };
}

/** How often tokens use the groups and experts of a layer: the measured probabilities of its costs. */
export interface GroupRouting {
  readonly groupProbabilities: readonly number[];
  /** Of each group's experts. */
  readonly expertProbabilities: readonly (readonly number[])[];
}

/** Counts how often tokens use groups, and experts in them. */
export async function groupRouting(
  routing: Routing,
  groups: readonly (readonly number[])[],
): Promise<GroupRouting> {
  const numExperts = groups.reduce((sum, group) => sum + group.length, 0);
  const { tokens, expertCounts } = await routingStatistics(routing, numExperts);
  const share = (expert: number) => (tokens > 0 ? (expertCounts[expert] as number) / tokens : 0);
  return {
    groupProbabilities: await groupProbabilities(routing, groups),
    expertProbabilities: groups.map((group) => group.map(share)),
  };
}

/** The measured probability, for each group, that a token uses it: `groupProbabilities` of a plan. */
export async function groupProbabilities(
  { ids }: Routing,
  groups: readonly (readonly number[])[],
): Promise<number[]> {
  const [tokens, topK] = ids.shape as [number, number];
  const chosen = await ids.read();
  const groupOf = new Map(groups.flatMap((group, g) => group.map((expert) => [expert, g] as const)));
  const uses = new Float64Array(groups.length);
  for (let t = 0; t < tokens; t++) {
    const used = new Set(
      Array.from(chosen.subarray(t * topK, (t + 1) * topK), (expert) => groupOf.get(expert)),
    );
    for (const g of used) if (g !== undefined) (uses[g] as number) += 1;
  }
  return Array.from(uses, (count) => (tokens > 0 ? count / tokens : 0));
}
