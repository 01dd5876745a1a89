import { throwIfAborted } from '../errors.ts';
import type { Experts } from '../experts.ts';
import type { Routing } from '../routing.ts';
import type { Tensor } from '../tensor.ts';
import { batchOfSequences } from './batch.ts';
import type { KeptInputs } from './kept-inputs.ts';
import type { DecoderLayer } from './layer.ts';
import type { Model } from './model.ts';
import { cutWindows, type WindowSpan, windowSpans } from './windows.ts';

/**
 * A part of a text on its way through the layers. It goes by itself: every bit of it is the same, whatever other parts go
 * with it.
 */
export interface TextPart {
  readonly tokens: number;
  /**
   * Fills `inputs` [tokens, n] with what the layer's feed-forward part gets to see, and returns where that is routed, which belongs
   * to the caller. Nothing for a dense layer that the part need not go through.
   */
  reach(layer: DecoderLayer, inputs: Tensor<'f32'>): Promise<Routing | undefined>;
  /** Goes on through the layer's experts, or those that stand in for them. */
  pass(
    layer: DecoderLayer,
    inputs: Tensor<'f32'>,
    routing: Routing,
    replacement: Experts | undefined,
  ): Promise<void>;
  dispose(): void;
}

/** Token ids that the model runs on. */
export class RunningPart implements TextPart {
  readonly tokens: number;
  readonly #model: Model;
  readonly #hidden: Tensor;
  readonly #spans: readonly WindowSpan[];
  readonly #signal: AbortSignal | undefined;

  private constructor(
    model: Model,
    hidden: Tensor,
    spans: readonly WindowSpan[],
    signal: AbortSignal | undefined,
  ) {
    this.tokens = hidden.shape[0] as number;
    this.#model = model;
    this.#hidden = hidden;
    this.#spans = spans;
    this.#signal = signal;
  }

  static async embed(
    model: Model,
    ids: ArrayLike<number>,
    window: number,
    signal: AbortSignal | undefined,
  ): Promise<RunningPart> {
    throwIfAborted(signal);
    const windows = cutWindows(ids, window);
    const hidden = await model.turn(signal, (context) => model.embed(context, windows.flat()));
    return new RunningPart(model, hidden, windowSpans(windows), signal);
  }

  async reach(layer: DecoderLayer, inputs: Tensor<'f32'>): Promise<Routing> {
    const model = this.#model;
    for (const { begin, end, lengths } of this.#spans) {
      const batch = batchOfSequences(model.device, lengths);
      using _ = batch.positions;
      using x = this.#hidden.rows(begin, end);
      using h = inputs.rows(begin, end);
      await model.turn(this.#signal, async (context) => {
        layer.attend(context, x, batch);
        layer.normalize(context, x, h);
        await context.operations.settle();
      });
    }
    return layer.route(inputs);
  }

  async pass(
    layer: DecoderLayer,
    inputs: Tensor<'f32'>,
    routing: Routing,
    replacement: Experts | undefined,
  ): Promise<void> {
    for (const { begin, end } of this.#spans) {
      using x = this.#hidden.rows(begin, end);
      using h = inputs.rows(begin, end);
      using ids = routing.ids.rows(begin, end);
      using weights = routing.weights.rows(begin, end);
      await this.#model.turn(this.#signal, async (context) => {
        layer.applyExperts(context, h, { ids, weights }, x, replacement);
        await context.operations.settle();
      });
    }
  }

  dispose(): void {
    this.#hidden.dispose();
  }
}

/** What an earlier pass kept: it went through the layers then. */
export class KeptPart implements TextPart {
  readonly tokens: number;
  readonly #kept: KeptInputs;

  constructor(kept: KeptInputs) {
    this.tokens = kept.tokens;
    this.#kept = kept;
  }

  async reach(layer: DecoderLayer, inputs: Tensor<'f32'>): Promise<Routing | undefined> {
    return layer.isMoe ? this.#kept.putBack(layer.index, inputs, inputs.device) : undefined;
  }

  async pass(): Promise<void> {}

  dispose(): void {}
}
