import { type Checkpoint, openCheckpoint } from '../checkpoint/checkpoint.ts';
import { ModelConfig } from '../checkpoint/config.ts';
import type { DecoderSpec } from '../checkpoint/decoder-spec.ts';
import { loadTensor } from '../checkpoint/load-experts.ts';
import { type Device, openDevice } from '../device.ts';
import { type BlockDType, isBlockDType } from '../dtype.ts';
import { expected, MolaeError, throwIfAborted } from '../errors.ts';
import type { MoeBlock } from '../moe-block.ts';
import type { Tensor } from '../tensor.ts';
import type { LayerContext } from './attention.ts';
import { type Batch, batchAfter, batchOfSequences } from './batch.ts';
import { KeyValueCache } from './cache.ts';
import type { DecoderLayer } from './layer.ts';
import { loadLayer } from './load-layer.ts';
import { Operations } from './operations.ts';
import { rotaryFrequencies } from './rotary.ts';
import { Scratch } from './scratch.ts';

export interface ModelOptions {
  /** By default `openDevice('auto')`, disposed with the model. */
  readonly device?: Device | undefined;
  /** Load each layer when it is needed and let it go after: for models larger than memory, slowly. */
  readonly stream?: boolean | undefined;
  /** Round the routed experts to blocks of 8 or 4 bits as they are loaded, and run them so. CPU only. */
  readonly quantize?: BlockDType | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Called as layers are loaded. */
  readonly onProgress?: ((progress: { readonly done: number; readonly total: number }) => void) | undefined;
}

/**
 * A whole decoder model on a device, from a checkpoint as published or as converted by molae. Calls share their working
 * memory: await one (a generation to its end) before the next, or open a model for each.
 */
export class Model {
  readonly checkpoint: Checkpoint;
  readonly device: Device;
  readonly spec: DecoderSpec;
  /** @internal */
  readonly context: LayerContext;
  readonly #ownsDevice: boolean;
  readonly #embedding: Tensor;
  readonly #norm: Tensor;
  readonly #head: Tensor;
  readonly #layers: readonly DecoderLayer[] | undefined;
  readonly #quantize: BlockDType | undefined;
  readonly #substitutes = new Map<number, MoeBlock>();

  private constructor(parts: {
    checkpoint: Checkpoint;
    device: Device;
    ownsDevice: boolean;
    spec: DecoderSpec;
    embedding: Tensor;
    norm: Tensor;
    head: Tensor;
    layers: readonly DecoderLayer[] | undefined;
    quantize: BlockDType | undefined;
  }) {
    this.checkpoint = parts.checkpoint;
    this.device = parts.device;
    this.spec = parts.spec;
    this.#ownsDevice = parts.ownsDevice;
    this.#embedding = parts.embedding;
    this.#norm = parts.norm;
    this.#head = parts.head;
    this.#layers = parts.layers;
    this.#quantize = parts.quantize;
    this.context = {
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
    const { quantize } = options;
    if (quantize !== undefined && !isBlockDType(quantize)) throw expected('q8 or q4', 'quantize', quantize);
    const checkpoint = await openCheckpoint(path);
    const device = options.device ?? (await openDevice('auto'));
    const layers: DecoderLayer[] = [];
    try {
      const spec = readSpec(checkpoint);
      const embedding = await loadTensor(checkpoint, 'model.embed_tokens.weight', device);
      const norm = await loadTensor(checkpoint, 'model.norm.weight', device);
      const head = spec.tiedEmbeddings ? embedding : await loadTensor(checkpoint, 'lm_head.weight', device);
      checkVocabulary(spec, embedding, head, path);
      for (let index = 0; index < spec.numLayers && !options.stream; index++) {
        throwIfAborted(options.signal);
        layers.push(await loadLayer(checkpoint, spec, index, { device, quantize }));
        options.onProgress?.({ done: index + 1, total: spec.numLayers });
      }
      const ownsDevice = options.device === undefined;
      return new Model({
        checkpoint,
        device,
        ownsDevice,
        spec,
        embedding,
        norm,
        head,
        layers: options.stream ? undefined : layers,
        quantize,
      });
    } catch (error) {
      for (const layer of layers) layer.dispose();
      await checkpoint.close();
      if (!options.device) device.dispose();
      throw error;
    }
  }

  /** True where layers are loaded when they are needed. */
  get streams(): boolean {
    return this.#layers === undefined;
  }

  /**
   * Runs the model with another MoE block in place of a layer's own, or with its own again. The block stays the caller's.
   */
  substitute(layer: number, block: MoeBlock | undefined): void {
    if (!this.checkpoint.layers.has(layer)) throw expected('the index of a MoE layer', 'layer', layer);
    if (block) this.#substitutes.set(layer, block);
    else this.#substitutes.delete(layer);
  }

  /** Runs `use` with a layer, loading it where the model streams. */
  async withLayer<Result>(index: number, use: (layer: DecoderLayer) => Promise<Result>): Promise<Result> {
    const resident = this.#layers?.[index];
    const layer =
      resident ??
      (await loadLayer(this.checkpoint, this.spec, index, { device: this.device, quantize: this.#quantize }));
    layer.substitute = this.#substitutes.get(index);
    if (resident) return use(resident);
    try {
      return await use(layer);
    } finally {
      layer.dispose();
    }
  }

  /** Hidden states [tokens, n] of token ids before the first layer. The caller disposes them. */
  async embed(ids: ArrayLike<number>): Promise<Tensor> {
    const tokens = Int32Array.from(ids);
    using idTensor = this.device.tensor('i32', tokens);
    const hidden = this.device.empty('f32', [tokens.length, this.spec.hiddenSize]);
    this.context.operations.gatherRows(this.#embedding, idTensor, hidden);
    await this.context.operations.settle();
    return hidden;
  }

  /** Logits [tokens, V] of hidden states after the last layer, in a tensor that the next call overwrites. */
  async logits(hidden: Tensor): Promise<Tensor> {
    const { operations, scratch } = this.context;
    const tokens = hidden.shape[0] as number;
    const normed = scratch.get('normed', hidden.shape);
    const logits = scratch.get('logits', [tokens, this.#head.shape[0] as number]);
    operations.rmsNorm(hidden, this.#norm, this.spec.rmsNormEps, normed);
    operations.linear(normed, this.#head, undefined, logits);
    await operations.settle();
    return logits;
  }

  /** Takes hidden states [tokens, n] through all layers, in place. */
  async runLayers(hidden: Tensor, batch: Batch, cache?: KeyValueCache, signal?: AbortSignal): Promise<void> {
    for (let index = 0; index < this.spec.numLayers; index++) {
      throwIfAborted(signal);
      await this.withLayer(index, (layer) =>
        layer.forward(this.context, hidden, batch, cache?.layers[index]),
      );
    }
  }

  /**
   * Logits [tokens, V] in f32 for one sequence of token ids, from its beginning.
   *
   * @throws MolaeError `INVALID_ARGUMENT` for a sequence longer than the context, an id outside of the vocabulary.
   */
  async forward(ids: ArrayLike<number>): Promise<Tensor> {
    this.#checkLength(ids.length);
    const batch = batchOfSequences(this.device, [ids.length]);
    using hidden = await this.embed(ids);
    await this.runLayers(hidden, batch);
    batch.positions.dispose();
    const logits = await this.logits(hidden);
    return logits.to('f32');
  }

  /** A cache for a sequence of up to `capacity` tokens, by default the whole context. */
  newCache(capacity: number = this.spec.contextLength): KeyValueCache {
    this.#checkLength(capacity);
    return new KeyValueCache(this.device, this.spec, capacity);
  }

  /** The logits [V] after the last of some more tokens of a sequence. Long ones go through in chunks. */
  async extend(cache: KeyValueCache, ids: ArrayLike<number>, signal?: AbortSignal): Promise<Float32Array> {
    const tokens = Array.from(ids);
    if (tokens.length === 0) throw expected('at least one token', 'ids', tokens);
    let logits = new Float32Array();
    for (let begin = 0; begin < tokens.length; begin += PREFILL_TOKENS) {
      const chunk = tokens.slice(begin, begin + PREFILL_TOKENS);
      const batch = batchAfter(this.device, cache.length, chunk.length);
      cache.reserve(chunk.length);
      using hidden = await this.embed(chunk);
      await this.runLayers(hidden, batch, cache, signal);
      batch.positions.dispose();
      if (begin + chunk.length < tokens.length) continue;
      using last = hidden.rows(chunk.length - 1, chunk.length);
      logits = (await (await this.logits(last)).read()) as Float32Array<ArrayBuffer>;
    }
    return logits;
  }

  async close(): Promise<void> {
    for (const layer of this.#layers ?? []) layer.dispose();
    for (const tensor of new Set([this.#embedding, this.#norm, this.#head, this.context.frequencies]))
      tensor.dispose();
    this.context.scratch.dispose();
    await this.checkpoint.close();
    if (this.#ownsDevice) this.device.dispose();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #checkLength(tokens: number): void {
    if (!Number.isSafeInteger(tokens) || tokens < 1 || tokens > this.spec.contextLength) {
      throw expected(`1 to ${this.spec.contextLength} tokens (the model's context)`, 'length', tokens);
    }
  }
}

/** Tokens of a prompt that go through the model at a time. */
const PREFILL_TOKENS = 512;

function readSpec(checkpoint: Checkpoint): DecoderSpec {
  const { family, config, path } = checkpoint;
  if (!family.decoder) {
    throw new MolaeError(
      'UNSUPPORTED_CHECKPOINT',
      `${path}: molae converts ${family.modelType} checkpoints, but cannot run them yet`,
    );
  }
  return family.decoder(new ModelConfig(config, path));
}

function checkVocabulary(spec: DecoderSpec, embedding: Tensor, head: Tensor, path: string): void {
  for (const [name, tensor] of [
    ['model.embed_tokens.weight', embedding],
    ['lm_head.weight', head],
  ] as const) {
    if (tensor.shape[0] !== spec.vocabSize || tensor.shape[1] !== spec.hiddenSize) {
      throw new MolaeError(
        'BAD_CHECKPOINT',
        `${path}: tensor ${name} has shape [${tensor.shape.join(', ')}], but config.json asks for [${spec.vocabSize}, ${spec.hiddenSize}]`,
      );
    }
  }
}
