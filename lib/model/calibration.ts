import type { MoeSpec } from '../checkpoint/family.ts';
import type { Device } from '../device.ts';
import { throwIfAborted } from '../errors.ts';
import type { Experts } from '../experts.ts';
import type { Partition } from '../factorization/groups.ts';
import type { MoeBlock } from '../moe-block.ts';
import type { Routing } from '../routing.ts';
import type { Tensor } from '../tensor.ts';
import { KeptInputs } from './kept-inputs.ts';
import type { DecoderLayer } from './layer.ts';
import type { Model } from './model.ts';
import { checkWindow, defaultWindow } from './perplexity.ts';
import { KeptPart, RunningPart, type TextPart } from './text-part.ts';

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
  visit: LayerVisitor,
  options: CalibrationOptions = {},
): Promise<void> {
  await calibrateParts(model, [ids], visit, options);
}

/** @internal A text in parts, each of token ids or what an earlier pass kept of it. */
export type TextParts = readonly (ArrayLike<number> | KeptInputs)[];

/** Looks at a MoE layer; experts that it returns are used in place of the layer's own. */
export type LayerVisitor = (layer: CalibrationLayer) => Promise<Experts | undefined>;

/**
 * @internal Like `calibrate`, on a text in parts. Each goes by itself (see `TextPart`), so that `visit` gets the same bits whether
 * a part was kept or not. Experts in place of a layer's own do not change what was kept of later layers.
 */
export async function calibrateParts(
  model: Model,
  text: TextParts,
  visit: LayerVisitor,
  options: CalibrationOptions = {},
): Promise<void> {
  const { window = defaultWindow(model), signal, onProgress } = options;
  checkWindow(model, window);
  const { hiddenSize, layers } = model.checkpoint.spec;
  const parts: TextPart[] = [];
  try {
    for (const part of text) {
      parts.push(
        part instanceof KeptInputs
          ? new KeptPart(part)
          : await RunningPart.embed(model, part, window, signal),
      );
    }
    const tokens = parts.reduce((sum, part) => sum + part.tokens, 0);
    using inputs = model.device.empty('f32', [tokens, hiddenSize]);
    // Nobody sees what the last MoE layer puts out.
    const last = Math.max(...layers);
    for (let index = 0; index <= last; index++) {
      throwIfAborted(signal);
      await model.withLayer(index, (layer) => throughLayer(layer, parts, inputs, visit, index < last));
      onProgress?.({ done: index + 1, total: last + 1 });
    }
  } finally {
    for (const part of parts) part.dispose();
  }
}

/** `goOn`: the parts leave the layer, too. */
async function throughLayer(
  layer: DecoderLayer,
  parts: readonly TextPart[],
  inputs: Tensor<'f32'>,
  visit: LayerVisitor,
  goOn: boolean,
): Promise<void> {
  const reached: { readonly part: TextPart; readonly x: Tensor<'f32'>; readonly routing: Routing }[] = [];
  const views: Tensor[] = [];
  try {
    let begin = 0;
    for (const part of parts) {
      const x = inputs.rows(begin, begin + part.tokens);
      views.push(x);
      begin += part.tokens;
      const routing = await part.reach(layer, x);
      if (routing) reached.push({ part, x, routing });
    }
    const replacement = layer.isMoe
      ? await visitLayer(
          layer,
          inputs,
          reached.map(({ routing }) => routing),
          visit,
        )
      : undefined;
    if (!goOn) return;
    for (const { part, x, routing } of reached) await part.pass(layer, x, routing, replacement);
  } finally {
    for (const view of views) view.dispose();
    for (const { routing } of reached) disposeRouting(routing);
  }
}

async function visitLayer(
  layer: DecoderLayer,
  x: Tensor<'f32'>,
  routings: readonly Routing[],
  visit: LayerVisitor,
): Promise<Experts | undefined> {
  const look = (routing: Routing) =>
    visit({ layer: layer.index, block: layer.feedForward as MoeBlock, x, routing });
  const [only] = routings;
  if (only && routings.length === 1) return look(only);
  const routing = await joinRoutings(x.device, routings);
  try {
    return await look(routing);
  } finally {
    disposeRouting(routing);
  }
}

/** Of parts of a text, one after the other. */
async function joinRoutings(device: Device, routings: readonly Routing[]): Promise<Routing> {
  const topK = routings[0]?.ids.shape[1] as number;
  const slots = routings.reduce((sum, { ids }) => sum + ids.length, 0);
  const [ids, weights] = [new Int32Array(slots), new Float32Array(slots)];
  let begin = 0;
  for (const part of routings) {
    const end = begin + part.ids.length;
    await part.ids.read(ids.subarray(begin, end));
    await part.weights.read(weights.subarray(begin, end));
    begin = end;
  }
  const shape = [slots / topK, topK];
  return { ids: device.tensor('i32', ids, shape), weights: device.tensor('f32', weights, shape) };
}

function disposeRouting({ ids, weights }: Routing): void {
  ids.dispose();
  weights.dispose();
}

/** Evenly spaced windows of a text, `tokens` of it at most (one window at least); all of it where it is no longer. */
export function sampleWindows(ids: ArrayLike<number>, tokens: number, window: number): number[] {
  return splitWindows(ids, tokens, window).sample;
}

/** @internal What `sampleWindows` takes of a text, and what it leaves, in order. */
export function splitWindows(
  ids: ArrayLike<number>,
  tokens: number,
  window: number,
): { readonly sample: number[]; readonly rest: number[] } {
  const all = Array.from(ids);
  const wanted = Math.max(1, Math.floor(tokens / window));
  const count = Math.floor(all.length / window);
  if (count <= wanted) return { sample: all, rest: [] };
  const begins = Array.from({ length: wanted }, (_, i) => Math.floor((i * count) / wanted) * window);
  return {
    sample: begins.flatMap((begin) => all.slice(begin, begin + window)),
    rest: [-window, ...begins].flatMap((begin, i) => all.slice(begin + window, begins[i])),
  };
}

/**
 * Calibration tokens that serve the experts of a model: 4096 for each on average, 16,384 to 131,072 in all. More gained
 * nothing where it was measured (docs/choosing.md).
 */
export function calibrationTokens({ numExperts, topK }: Pick<MoeSpec, 'numExperts' | 'topK'>): number {
  return Math.min(131_072, Math.max(16_384, Math.ceil(numExperts / topK) * 4096));
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
export async function routingStatistics(routing: Routing, numExperts: number): Promise<RoutingStatistics> {
  const { ids } = routing;
  const [tokens, topK] = ids.shape as [number, number];
  const chosen = await ids.read();
  const coActivation = new Float64Array(numExperts * numExperts);
  for (let t = 0; t < tokens; t++) {
    const experts = chosen.subarray(t * topK, (t + 1) * topK);
    for (const a of experts) {
      for (const b of experts) if (a !== b) (coActivation[a * numExperts + b] as number) += 1;
    }
  }
  return { tokens, expertCounts: await expertCounts(routing, numExperts), coActivation };
}

/** @internal How often each expert was chosen. */
export async function expertCounts({ ids }: Routing, numExperts: number): Promise<Float64Array> {
  const counts = new Float64Array(numExperts);
  for (const expert of await ids.read()) (counts[expert] as number) += 1;
  return counts;
}

/** How often tokens use the groups and experts of a layer: the measured probabilities of its costs. */
export interface GroupRouting {
  readonly groupProbabilities: readonly number[];
  /** Of each group's experts. */
  readonly expertProbabilities: readonly (readonly number[])[];
}

/** Counts how often tokens use groups, and experts in them. */
export async function groupRouting(routing: Routing, groups: Partition): Promise<GroupRouting> {
  const tokens = routing.ids.shape[0] as number;
  const numExperts = groups.reduce((sum, group) => sum + group.length, 0);
  const counts = await expertCounts(routing, numExperts);
  const share = (expert: number) => (tokens > 0 ? (counts[expert] as number) / tokens : 0);
  return {
    groupProbabilities: await groupProbabilities(routing, groups),
    expertProbabilities: groups.map((group) => group.map(share)),
  };
}

/** The measured probability, for each group, that a token uses it: `groupProbabilities` of a plan. */
export async function groupProbabilities({ ids }: Routing, groups: Partition): Promise<number[]> {
  const [tokens, topK] = ids.shape as [number, number];
  const chosen = await ids.read();
  const groupOf: (number | undefined)[] = [];
  for (const [g, group] of groups.entries()) for (const expert of group) groupOf[expert] = g;
  const uses = new Float64Array(groups.length);
  /** The last token that used a group. */
  const lastOf = new Int32Array(groups.length).fill(-1);
  for (let slot = 0; slot < tokens * topK; slot++) {
    const group = groupOf[chosen[slot] as number];
    const token = Math.floor(slot / topK);
    if (group === undefined || lastOf[group] === token) continue;
    lastOf[group] = token;
    (uses[group] as number) += 1;
  }
  return Array.from(uses, (count) => (tokens > 0 ? count / tokens : 0));
}
