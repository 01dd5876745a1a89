import type { MoeSpec } from '../checkpoint/family.ts';
import type { Device } from '../device.ts';
import { checkWorkOptions, throwIfAborted } from '../errors.ts';
import type { Experts } from '../experts.ts';
import type { MoeBlock } from '../moe-block.ts';
import type { Routing } from '../routing.ts';
import type { Tensor } from '../tensor.ts';
import type { CalibrationLayer } from './calibration-layer.ts';
import { KeptInputs } from './kept-inputs.ts';
import type { DecoderLayer } from './layer.ts';
import type { Model } from './model.ts';
import { KeptPart, RunningPart, type TextPart } from './text-part.ts';
import { checkWindow, defaultWindow } from './windows.ts';

/** How `calibrate` takes its text through the model. */
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
  checkWorkOptions(options);
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

/**
 * Calibration tokens that serve the experts of a model: 4096 for each on average, 16,384 to 131,072 in all. More gained
 * nothing where it was measured (docs/choosing.md).
 */
export function calibrationTokens({ numExperts, topK }: Pick<MoeSpec, 'numExperts' | 'topK'>): number {
  return Math.min(131_072, Math.max(16_384, Math.ceil(numExperts / topK) * 4096));
}
