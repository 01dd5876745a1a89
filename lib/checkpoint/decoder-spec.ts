import type { ModelConfig } from './config.ts';
import { isJsonObject, type JsonObject } from './json.ts';
import { badCheckpoint, quote, unsupportedCheckpoint } from './problems.ts';

/** What a family's config says of everything beside the experts: enough to run the whole model. */
export interface DecoderSpec {
  readonly hiddenSize: number;
  readonly numLayers: number;
  readonly vocabSize: number;
  /** Positions the model was made for. */
  readonly contextLength: number;
  readonly rmsNormEps: number;
  /** The output projection is the embedding table. */
  readonly tiedEmbeddings: boolean;
  readonly attention: Attention;
  readonly rotary: Rotary;
}

/** What every kind of attention tells: queries and keys of `headSize`, values of `valueSize`. */
export interface AttentionSizes {
  readonly heads: number;
  /** Heads of keys and values: each serves `heads / kvHeads` heads of queries. */
  readonly kvHeads: number;
  readonly headSize: number;
  readonly valueSize: number;
  /** Of the scores. */
  readonly scale: number;
  /** Keys that a query of this layer sees at most; 0: all before it. */
  window(layer: number): number;
}

/** Grouped-query attention: keys and values are projections of the input. */
export interface GroupedQueryAttention extends AttentionSizes {
  readonly kind: 'grouped-query';
  /** RMS norm of queries and keys before rotation: of each head, or of all heads together. */
  readonly queryKeyNorm: 'none' | 'head' | 'all';
}

/** Multi-head latent attention (DeepSeek): keys and values of all heads come from one small latent vector. */
export interface LatentAttention extends AttentionSizes {
  readonly kind: 'latent';
  /** Width of the latent vector of keys and values. */
  readonly kvLatentSize: number;
  /** Width of the latent vector of queries; undefined where they are projected directly. */
  readonly queryLatentSize: number | undefined;
  /** Elements of a head that are not rotated; the rest, shared by all heads of keys, is. */
  readonly plainSize: number;
  /** Of the norms of both latent vectors; no config has it. */
  readonly latentNormEps: number;
}

/** The attention of a model, by its kind. */
export type Attention = GroupedQueryAttention | LatentAttention;

/** Rotary position embeddings. */
export interface Rotary {
  readonly theta: number;
  /** Elements of a head that are rotated. */
  readonly size: number;
  /** Neighbouring elements are rotated together instead of the halves of a head. */
  readonly neighbours: boolean;
  readonly scaling: RotaryScaling;
}

/** How rotary frequencies were stretched to longer contexts, by the names of Hugging Face's configs. */
export type RotaryScaling =
  | { readonly type: 'default' }
  | { readonly type: 'linear'; readonly factor: number }
  | {
      readonly type: 'llama3';
      readonly factor: number;
      readonly lowFrequencyFactor: number;
      readonly highFrequencyFactor: number;
      readonly originalContextLength: number;
    }
  | {
      readonly type: 'yarn';
      readonly factor: number;
      readonly betaFast: number;
      readonly betaSlow: number;
      readonly originalContextLength: number;
      /** The blend of kept and stretched frequencies begins and ends at whole pairs. */
      readonly truncate: boolean;
      /** Of cosine and sine; by default 0.1·ln(factor) + 1. */
      readonly attentionFactor: number;
    };

/** What a family takes for fields that its config leaves out: what transformers takes. */
interface Defaults {
  readonly rmsNormEps: number;
  readonly ropeTheta: number;
}

/** Of most families. */
const DEFAULTS: Defaults = { rmsNormEps: 1e-6, ropeTheta: 10_000 };

/** What Llama-like families do differently. By default there are no norms of queries and keys, and no windows. */
interface Differences extends Partial<Pick<GroupedQueryAttention, 'queryKeyNorm' | 'window'>> {
  readonly defaults?: Partial<Defaults>;
}

/** Reads what Llama-like families have in common; a family adds what differs. */
export function readDecoder(
  config: ModelConfig,
  { defaults: own, ...differences }: Differences = {},
): DecoderSpec {
  const defaults = { ...DEFAULTS, ...own };
  const hiddenSize = config.positiveInteger('hidden_size');
  const heads = config.positiveInteger('num_attention_heads');
  const kvHeads = config.optionalPositiveInteger('num_key_value_heads') ?? heads;
  const headSize = config.optionalPositiveInteger('head_dim') ?? hiddenSize / heads;
  if (!Number.isInteger(headSize) || heads % kvHeads !== 0) {
    throw badCheckpoint(
      config.file,
      `${heads} heads, ${kvHeads} of keys, do not divide hidden_size ${hiddenSize}`,
    );
  }
  return {
    ...readFrame(config, defaults),
    attention: {
      kind: 'grouped-query',
      heads,
      kvHeads,
      headSize,
      valueSize: headSize,
      scale: 1 / Math.sqrt(headSize),
      queryKeyNorm: 'none',
      window: () => 0,
      ...differences,
    },
    rotary: {
      ...readRotary(config, headSize, defaults),
      neighbours: false,
    },
  };
}

/** Reads a decoder with multi-head latent attention. */
export function readLatentAttentionDecoder(
  config: ModelConfig,
  { neighbours }: Pick<Rotary, 'neighbours'>,
): DecoderSpec {
  const heads = config.positiveInteger('num_attention_heads');
  const plainSize = config.positiveInteger('qk_nope_head_dim');
  const rotatedSize = config.positiveInteger('qk_rope_head_dim');
  const headSize = plainSize + rotatedSize;
  const rotary = { ...readRotary(config, rotatedSize, DEFAULTS), neighbours };
  return {
    ...readFrame(config, DEFAULTS),
    attention: {
      kind: 'latent',
      heads,
      kvHeads: heads,
      headSize,
      valueSize: config.positiveInteger('v_head_dim'),
      scale: yarnScale(config, rotary) / Math.sqrt(headSize),
      kvLatentSize: config.positiveInteger('kv_lora_rank'),
      queryLatentSize: config.optionalPositiveInteger('q_lora_rank'),
      plainSize,
      latentNormEps: 1e-6, // whatever rms_norm_eps is: DeepSeek's own code and transformers agree
      window: () => 0,
    },
    rotary,
  };
}

/** With YaRN and `mscale_all_dim` = a the scores are scaled by (0.1·a·ln(factor) + 1)² more. */
function yarnScale(config: ModelConfig, { scaling }: Rotary): number {
  const all = numberIn(rotaryParameters(config), 'mscale_all_dim');
  return scaling.type === 'yarn' && all !== undefined ? yarnMagnitude(scaling.factor, all) ** 2 : 1;
}

function yarnMagnitude(factor: number, weight: number): number {
  return factor <= 1 ? 1 : 0.1 * weight * Math.log(factor) + 1;
}

/** Everything but attention and rotation. */
function readFrame(config: ModelConfig, { rmsNormEps }: Defaults): Omit<DecoderSpec, 'attention' | 'rotary'> {
  return {
    hiddenSize: config.positiveInteger('hidden_size'),
    numLayers: config.positiveInteger('num_hidden_layers'),
    vocabSize: config.positiveInteger('vocab_size'),
    contextLength: config.positiveInteger('max_position_embeddings'),
    rmsNormEps: config.nonNegativeNumber('rms_norm_eps', rmsNormEps),
    tiedEmbeddings: config.boolean('tie_word_embeddings', false),
  };
}

/** Of older configs `rope_scaling`, of newer ones `rope_parameters`; with both transformers takes the older alone. */
function rotaryParameters(config: ModelConfig): JsonObject {
  const older = config.optionalObject('rope_scaling') ?? {};
  return Object.keys(older).length > 0 ? older : (config.optionalObject('rope_parameters') ?? {});
}

/** Rotary settings, where older configs (`rope_theta`, `rope_scaling`) or newer ones (`rope_parameters`) have them. */
function readRotary(config: ModelConfig, size: number, { ropeTheta }: Defaults): Omit<Rotary, 'neighbours'> {
  const parameters = rotaryParameters(config);
  const theta = numberIn(parameters, 'rope_theta') ?? config.number('rope_theta', ropeTheta);
  if (!Number.isInteger(size) || size % 2 !== 0 || size < 2 || theta <= 0) {
    throw badCheckpoint(
      config.file,
      `rotary embeddings of ${size} elements with rope_theta ${theta} make no sense`,
    );
  }
  return { theta, size, scaling: readScaling(config, parameters) };
}

function readScaling(config: ModelConfig, parameters: JsonObject): RotaryScaling {
  const type = parameters.rope_type ?? parameters.type ?? 'default';
  const required = (field: string): number => {
    const value = numberIn(parameters, field);
    if (value === undefined || value <= 0)
      throw badCheckpoint(
        config.file,
        `rope scaling: ${field} is ${quote(parameters[field])}, not a positive number`,
      );
    return value;
  };
  const original = () =>
    numberIn(parameters, 'original_max_position_embeddings') ??
    config.positiveInteger('max_position_embeddings');
  switch (type) {
    case 'default':
      return { type: 'default' };
    case 'linear':
      return { type: 'linear', factor: required('factor') };
    // Within the context it was trained for, dynamic scaling does nothing; molae does not go beyond.
    case 'dynamic':
      return { type: 'default' };
    case 'llama3':
      return {
        type: 'llama3',
        factor: required('factor'),
        lowFrequencyFactor: required('low_freq_factor'),
        highFrequencyFactor: required('high_freq_factor'),
        originalContextLength: original(),
      };
    case 'yarn': {
      const factor = required('factor');
      return {
        type: 'yarn',
        factor,
        betaFast: numberIn(parameters, 'beta_fast') ?? 32,
        betaSlow: numberIn(parameters, 'beta_slow') ?? 1,
        originalContextLength: original(),
        truncate: readTruncate(config, parameters),
        attentionFactor: numberIn(parameters, 'attention_factor') ?? yarnAttentionFactor(parameters, factor),
      };
    }
    default:
      throw unsupportedCheckpoint(
        config.file,
        `rope scaling of type ${quote(type)}; supported are default, linear, dynamic, llama3, yarn`,
      );
  }
}

function readTruncate(config: ModelConfig, parameters: JsonObject): boolean {
  const { truncate = true } = parameters;
  if (truncate === null) return false; // as transformers
  if (typeof truncate !== 'boolean')
    throw badCheckpoint(config.file, `rope scaling: truncate is ${quote(truncate)}, not true or false`);
  return truncate;
}

/** As transformers: the ratio of two magnitudes where both weights are given, as DeepSeek does. */
function yarnAttentionFactor(parameters: JsonObject, factor: number): number {
  const weight = numberIn(parameters, 'mscale');
  const all = numberIn(parameters, 'mscale_all_dim');
  if (weight && all) return yarnMagnitude(factor, weight) / yarnMagnitude(factor, all);
  return yarnMagnitude(factor, 1);
}

function numberIn(object: unknown, field: string): number | undefined {
  const value = isJsonObject(object) ? object[field] : undefined;
  return typeof value === 'number' && Number.isFinite(value) ? value : undefined;
}
