import { type Checkpoint, openCheckpoint } from '../checkpoint/checkpoint.ts';
import { checkDecoderShapes } from '../checkpoint/decoder-shapes.ts';
import type { DecoderSpec } from '../checkpoint/decoder-spec.ts';
import { loadTensor } from '../checkpoint/load-experts.ts';
import { checkDevice, type Device, openDevice } from '../device.ts';
import { type BlockDType, checkBlockDType } from '../dtype.ts';
import { checkObject, checkWorkOptions, expected, MolaeError, throwIfAborted } from '../errors.ts';
import type { PackOptions } from '../experts.ts';
import type { MoeBlock } from '../moe-block.ts';
import type { Tensor } from '../tensor.ts';
import type { LayerContext } from './attention.ts';
import { type Batch, batchAfter, batchOfSequences } from './batch.ts';
import { KeyValueCache } from './cache.ts';
import { readEndTokens } from './end-tokens.ts';
import type { DecoderLayer } from './layer.ts';
import { loadLayer } from './load-layer.ts';
import { Operations } from './operations.ts';
import { rotaryFrequencies } from './rotary.ts';
import { Scratch } from './scratch.ts';
import { closedError, Turns } from './turns.ts';

/** How `Model.open` loads a model. */
export interface ModelOptions {
  /** By default `openDevice('auto')`, disposed with the model. */
  readonly device?: Device | undefined;
  /** Load each layer when it is needed and let it go after: for models larger than memory, slowly. */
  readonly stream?: boolean | undefined;
  /** Round the routed experts to blocks of 8 or 4 bits as they are loaded, and run them so. CPU only. */
  readonly quantize?: BlockDType | undefined;
  /** `Experts.pack` every layer as it is loaded: for models that answer many prompts. Not where layers stream. */
  readonly pack?: boolean | Pick<PackOptions, 'inputs'> | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Called as layers are loaded. */
  readonly onProgress?: ((progress: { readonly done: number; readonly total: number }) => void) | undefined;
}

/**
 * A whole decoder model on a device, from a checkpoint as published or as converted by molae.
 *
 * Calls may overlap: they take turns, in the order in which they ask, a piece of work at a time (a token of a generation, some
 * hundred of a prompt, a layer of some windows of an evaluation). Results are those of calls one after the
 * other. An `AbortSignal` is heeded while waiting, too.
 */
export class Model {
  readonly checkpoint: Checkpoint;
  readonly device: Device;
  readonly spec: DecoderSpec;
  /** The token ids that end a text: `eos_token_id` of config.json and of generation_config.json. */
  readonly endTokens: ReadonlySet<number>;
  readonly #ownsDevice: boolean;
  readonly #context: LayerContext;
  readonly #turns = new Turns();
  readonly #embedding: Tensor;
  readonly #norm: Tensor;
  readonly #head: Tensor;
  readonly #layers: readonly DecoderLayer[] | undefined;
  readonly #quantize: BlockDType | undefined;
  readonly #substitutes = new Map<number, MoeBlock>();
  #closing: Promise<void> | undefined;

  private constructor(parts: {
    checkpoint: Checkpoint;
    device: Device;
    ownsDevice: boolean;
    spec: DecoderSpec;
    endTokens: ReadonlySet<number>;
    embedding: Tensor;
    norm: Tensor;
    head: Tensor;
    layers: readonly DecoderLayer[] | undefined;
    quantize: BlockDType | undefined;
  }) {
    this.checkpoint = parts.checkpoint;
    this.device = parts.device;
    this.spec = parts.spec;
    this.endTokens = parts.endTokens;
    this.#ownsDevice = parts.ownsDevice;
    this.#embedding = parts.embedding;
    this.#norm = parts.norm;
    this.#head = parts.head;
    this.#layers = parts.layers;
    this.#quantize = parts.quantize;
    this.#context = {
      spec: parts.spec,
      frequencies: this.device.tensor('f32', rotaryFrequencies(parts.spec.rotary)),
      operations: new Operations(this.device),
      scratch: new Scratch(this.device),
    };
  }

  /**
   * @throws MolaeError `UNSUPPORTED_CHECKPOINT` for a family that molae converts but cannot run, `BAD_CHECKPOINT`,
   * `OUT_OF_MEMORY`, `ABORTED`.
   */
  static async open(path: string, options: ModelOptions = {}): Promise<Model> {
    checkOptions(options);
    const { quantize } = options;
    const checkpoint = await openCheckpoint(path);
    const made: { dispose(): void }[] = [];
    const own = <Made extends { dispose(): void }>(one: Made): Made => {
      made.push(one);
      return one;
    };
    try {
      const spec = checkpoint.decoder();
      checkDecoderShapes(checkpoint.shards, spec);
      const endTokens = await readEndTokens(checkpoint);
      const device = options.device ?? own(await openDevice('auto'));
      const load = async (name: string) => own(await loadTensor(checkpoint, name, device));
      const embedding = await load('model.embed_tokens.weight');
      const norm = await load('model.norm.weight');
      const head = spec.tiedEmbeddings ? embedding : await load('lm_head.weight');
      const layers: DecoderLayer[] = [];
      for (let index = 0; index < spec.numLayers && !options.stream; index++) {
        throwIfAborted(options.signal);
        const layer = own(await loadLayer(checkpoint, spec, index, { device, quantize }));
        layers.push(layer);
        if (options.pack)
          await layer.experts.pack({ ...packing(options), release: true, signal: options.signal });
        options.onProgress?.({ done: index + 1, total: spec.numLayers });
      }
      return new Model({
        checkpoint,
        device,
        ownsDevice: options.device === undefined,
        spec,
        endTokens,
        embedding,
        norm,
        head,
        layers: options.stream ? undefined : layers,
        quantize,
      });
    } catch (error) {
      for (const one of made.reverse()) one.dispose();
      await checkpoint.close();
      throw error;
    }
  }

  /** True where layers are loaded when they are needed. */
  get streams(): boolean {
    return this.#layers === undefined;
  }

  /**
   * Runs the model with another MoE block in place of a layer's own, or with its own again, from the next time on that any call
   * comes to the layer. The block stays the caller's.
   *
   * @throws MolaeError `INVALID_ARGUMENT` for another block where there is one already: two users would run each other's.
   */
  substitute(layer: number, block: MoeBlock | undefined): void {
    if (!this.checkpoint.layers.has(layer)) throw expected('the index of a MoE layer', 'layer', layer);
    if (block && this.#substitutes.has(layer)) {
      throw new MolaeError(
        'INVALID_ARGUMENT',
        `Layer ${layer} runs with another block already: give it back its own first`,
      );
    }
    if (block) this.#substitutes.set(layer, block);
    else this.#substitutes.delete(layer);
  }

  /**
   * @internal Runs a piece of work while no other runs: with scratch memory to itself. It must not ask for a turn, nor call what
   * is not molae's own.
   */
  turn<Result>(
    signal: AbortSignal | undefined,
    work: (context: LayerContext) => Promise<Result>,
  ): Promise<Result> {
    return this.#turns.take(signal, async () => {
      try {
        return await work(this.#context);
      } catch (error) {
        await this.#context.operations.settle().catch(() => {}); // what it left behind is not the next one's
        throw error;
      }
    });
  }

  /** @internal Runs `use` with a layer, loading it where the model streams. */
  async withLayer<Result>(index: number, use: (layer: DecoderLayer) => Promise<Result>): Promise<Result> {
    const resident = this.#layers?.[index];
    const layer = resident ?? (await this.#load(index));
    layer.substitute = this.#substitutes.get(index);
    if (resident) return use(resident);
    try {
      return await use(layer);
    } finally {
      layer.dispose();
    }
  }

  /** @internal In a turn: hidden states [tokens, n] of token ids before the first layer. The caller disposes them. */
  async embed({ operations }: LayerContext, ids: ArrayLike<number>): Promise<Tensor> {
    using idTensor = this.device.tensor('i32', tokenIds(ids));
    const hidden = this.device.empty('f32', [ids.length, this.spec.hiddenSize]);
    operations.gatherRows(this.#embedding, idTensor, hidden);
    await operations.settle();
    return hidden;
  }

  /** @internal In a turn: logits [tokens, V] of hidden states after the last layer, in scratch memory. */
  async logits({ operations, scratch }: LayerContext, hidden: Tensor): Promise<Tensor> {
    const tokens = hidden.shape[0] as number;
    const normed = scratch.get('normed', hidden.shape);
    const logits = scratch.get('logits', [tokens, this.#head.shape[0] as number]);
    operations.rmsNorm(hidden, this.#norm, this.spec.rmsNormEps, normed);
    operations.linear(normed, this.#head, undefined, logits);
    await operations.settle();
    return logits;
  }

  /**
   * Logits [tokens, V] in f32 for one sequence of token ids, from its beginning.
   *
   * @throws MolaeError `INVALID_ARGUMENT` for a sequence longer than the context, an id outside of the vocabulary; `ABORTED`.
   */
  async forward(ids: ArrayLike<number>, signal?: AbortSignal): Promise<Tensor> {
    this.#checkLength(ids.length);
    const tokens = Array.from(ids);
    return this.turn(signal, async (context) => {
      const batch = batchOfSequences(this.device, [tokens.length]);
      using _ = batch.positions;
      using hidden = await this.embed(context, tokens);
      await this.#runLayers(context, hidden, batch, signal);
      const logits = await this.logits(context, hidden);
      return logits.to('f32');
    });
  }

  /** A cache for a sequence of up to `capacity` tokens, by default the whole context. */
  newCache(capacity: number = this.spec.contextLength): KeyValueCache {
    this.#checkLength(capacity);
    return new KeyValueCache(this.device, this.spec, capacity);
  }

  /**
   * The logits [V] after the last of some more tokens of a sequence. Calls on one cache append in the order in which they were
   * made; one that fails leaves the cache as it was.
   *
   * @throws MolaeError `INVALID_ARGUMENT` for no tokens, more than the cache has room for, an id outside of the vocabulary;
   * `NON_FINITE`; `ABORTED`.
   */
  async extend(cache: KeyValueCache, ids: ArrayLike<number>, signal?: AbortSignal): Promise<Float32Array> {
    const tokens = Array.from(ids);
    if (tokens.length === 0) throw expected('at least one token', 'ids', tokens);
    return cache.extend(tokens.length, signal, async () => {
      for (let begin = 0; ; begin += PREFILL_TOKENS) {
        const chunk = tokens.slice(begin, begin + PREFILL_TOKENS);
        const last = begin + chunk.length === tokens.length;
        const logits = await this.turn(signal, (context) =>
          this.#append(context, cache, chunk, last, signal),
        );
        if (logits) return logits;
      }
    });
  }

  /**
   * Waits for the piece of work in progress, and gives back all memory. Calls that wait for their turn, or have more pieces to
   * do, fail with `DISPOSED`.
   */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #close(): Promise<void> {
    await this.#turns.close();
    for (const layer of this.#layers ?? []) layer.dispose();
    for (const tensor of new Set([this.#embedding, this.#norm, this.#head, this.#context.frequencies]))
      tensor.dispose();
    this.#context.scratch.dispose();
    await this.checkpoint.close();
    if (this.#ownsDevice) this.device.dispose();
  }

  async #load(index: number): Promise<DecoderLayer> {
    try {
      const options = { device: this.device, quantize: this.#quantize };
      return await loadLayer(this.checkpoint, this.spec, index, options);
    } catch (error) {
      throw this.#closing ? closedError() : error; // its files are closed
    }
  }

  /** Takes some more tokens of a sequence through the model; the logits after the last where they are wanted. */
  async #append(
    context: LayerContext,
    cache: KeyValueCache,
    ids: readonly number[],
    wanted: boolean,
    signal: AbortSignal | undefined,
  ): Promise<Float32Array | undefined> {
    const batch = batchAfter(this.device, cache.length, ids.length);
    using _ = batch.positions;
    using hidden = await this.embed(context, ids);
    await this.#runLayers(context, hidden, batch, signal, cache);
    if (!wanted) return undefined;
    using last = hidden.rows(ids.length - 1, ids.length);
    const logits = await this.logits(context, last);
    return (await logits.read()) as Float32Array;
  }

  /** Takes hidden states [tokens, n] through all layers, in place. */
  async #runLayers(
    context: LayerContext,
    hidden: Tensor,
    batch: Batch,
    signal: AbortSignal | undefined,
    cache?: KeyValueCache,
  ): Promise<void> {
    for (let index = 0; index < this.spec.numLayers; index++) {
      throwIfAborted(signal);
      await this.withLayer(index, (layer) => layer.forward(context, hidden, batch, cache?.layers[index]));
    }
  }

  #checkLength(tokens: number): void {
    if (!Number.isSafeInteger(tokens) || tokens < 1 || tokens > this.spec.contextLength) {
      throw expected(`1 to ${this.spec.contextLength} tokens (the model's context)`, 'length', tokens);
    }
  }
}

/** Tokens of a prompt that go through the model at a time. */
const PREFILL_TOKENS = 512;

function packing({ pack }: ModelOptions): Pick<PackOptions, 'inputs'> {
  return typeof pack === 'object' ? pack : {};
}

function checkOptions(options: ModelOptions): void {
  checkObject(options, 'options');
  checkWorkOptions(options);
  if (options.device !== undefined) checkDevice(options.device);
  if (options.quantize !== undefined) checkBlockDType(options.quantize, 'quantize');
  if (options.pack && options.stream) {
    throw new MolaeError(
      'INVALID_ARGUMENT',
      'Layers that are loaded for one use each are not worth packing: leave out pack or stream',
    );
  }
}

/** A typed array of whole numbers: it would turn what is none into 0. */
function tokenIds(ids: ArrayLike<number>): Int32Array {
  return Int32Array.from(ids, (id, i) => {
    if (!Number.isInteger(id)) throw expected('an integer', `token id ${i}`, id);
    return id;
  });
}
