import { elementBytes, type FloatDType, isBlockDType } from '../dtype.ts';
import { expected, MolaeError } from '../errors.ts';
import type { Experts } from '../experts.ts';
import type { MoeBlock } from '../moe-block.ts';
import { checkOperator, type Operator } from '../operators.ts';
import { ModelConfig } from './config.ts';
import type { DecoderSpec } from './decoder-spec.ts';
import { describeDecoder } from './families/index.ts';
import { type Family, locateExpert, type MoeSpec, operatorShape } from './family.ts';
import type { JsonObject } from './json.ts';
import { type LatentFactor, latentFactorShapes, latentTensorName, type MolaeBlock } from './latent-format.ts';
import type { MoeLayer } from './layers.ts';
import { type LoadOptions, loadExperts, loadMoeBlock } from './load-experts.ts';
import { Shards } from './shards.ts';
import { countBytes, countParameters, elementShapes } from './tally.ts';
import { type Findings, verifyCheckpoint } from './verify.ts';
import type { Weights } from './weights.ts';

interface Parts extends Readonly<Findings> {
  readonly path: string;
  readonly config: ModelConfig;
}

/** An open checkpoint, verified: its config, family and sizes, and its tensors, read when asked for. */
export class Checkpoint {
  /** The folder. */
  readonly path: string;
  /** The object in config.json as it is. */
  readonly config: JsonObject;
  readonly family: Family;
  /** The sizes of the MoE layers; of the source, for a converted checkpoint. */
  readonly spec: MoeSpec;
  /** `latent` when molae converted it. */
  readonly format: 'dense' | 'latent';
  /** How a converted checkpoint was made; undefined for a dense one. */
  readonly molae: MolaeBlock | undefined;
  /** The tensors as they are stored. */
  readonly shards: Shards;
  /** The floating tensors as numbers: quantized ones expanded. */
  readonly weights: Weights;
  /** The MoE layers by the decoder layer's index, ascending. */
  readonly layers: ReadonlyMap<number, MoeLayer>;
  /** The names of the tensors that hold the routed experts, dense or latent. */
  readonly expertTensors: ReadonlySet<string>;
  /** The names of the tensors with the scales of quantized experts. */
  readonly expertScales: ReadonlySet<string>;
  /** The shapes in elements of the tensors that are stored as bytes of blocks. */
  readonly blockShapes: ReadonlyMap<string, readonly number[]>;
  /** Elements of all tensors. */
  readonly parameters: number;
  /** Elements of the routed experts in all layers, as stored. */
  readonly expertParameters: number;
  /** Their bytes, with the scales of quantized ones. */
  readonly expertBytes: number;
  /** Bytes of all tensors. */
  readonly byteLength: number;
  readonly #config: ModelConfig;

  /** @internal Use {@link openCheckpoint}. */
  constructor({ path, config, family, spec, molae, shards, weights, verified }: Parts) {
    this.path = path;
    this.config = config.raw;
    this.#config = config;
    this.family = family;
    this.spec = spec;
    this.format = molae === undefined ? 'dense' : 'latent';
    this.molae = molae;
    this.shards = shards;
    this.weights = weights;
    this.layers = verified.layers;
    this.expertTensors = verified.expertTensors;
    this.expertScales = verified.expertScales;
    this.blockShapes = verified.blockShapes;
    this.parameters = countParameters(elementShapes(shards.tensors.keys(), shards, verified));
    this.expertParameters = countParameters(elementShapes(verified.expertTensors, shards, verified));
    this.expertBytes = countBytes(
      [...verified.expertTensors, ...verified.expertScales].map((name) => shards.tensor(name)),
    );
    this.byteLength = countBytes(shards.tensors.values());
  }

  /**
   * What is needed to run the whole model.
   *
   * @throws UNSUPPORTED_CHECKPOINT for a family that molae converts but cannot run, or an option of one that it lacks;
   *   BAD_CHECKPOINT for a missing or senseless field.
   */
  decoder(): DecoderSpec {
    return describeDecoder(this.#config);
  }

  /**
   * The routed experts of a decoder layer.
   *
   * @throws INVALID_ARGUMENT when it is no MoE layer.
   */
  layer(layer: number): MoeLayer {
    const found = this.layers.get(layer);
    if (found === undefined) {
      throw expected(`a MoE layer (${summarize(this.spec.layers)})`, 'layer', layer);
    }
    return found;
  }

  /**
   * The dtype that an operator's experts are read in, where they are dense.
   *
   * @throws INVALID_ARGUMENT for a layer or operator that does not exist or an operator stored as latent factors.
   */
  expertDtype(layer: number, operator: Operator): FloatDType {
    const { latentOperators, dtypes } = this.layer(layer);
    checkOperator(operator);
    const dtype = dtypes[operator];
    if (latentOperators.includes(operator) || isBlockDType(dtype)) {
      throw new MolaeError(
        'INVALID_ARGUMENT',
        `Layer ${layer} stores ${operator} as latent factors: read them with readFactor`,
      );
    }
    return dtype;
  }

  /**
   * Reads one expert's matrix, row-major [out, in]: gate and up [m, n], down [n, m], in the layer's dtype,
   * whatever layout the family stores it in.
   *
   * @param into memory to fill instead of fresh memory; a view of its start is returned.
   * @throws INVALID_ARGUMENT for a layer, expert or operator that does not exist or an operator stored as latent factors;
   *   and what {@link Shards.read} throws.
   */
  async readExpert(
    layer: number,
    expert: number,
    operator: Operator,
    into?: Uint8Array,
  ): Promise<Uint8Array> {
    this.layer(layer);
    if (!Number.isInteger(expert) || expert < 0 || expert >= this.spec.numExperts) {
      throw expected(`an expert from 0 to ${this.spec.numExperts - 1}`, 'expert', expert);
    }
    const itemBytes = elementBytes(this.expertDtype(layer, operator));
    const { name, elementOffset } = locateExpert(this.family, this.spec, layer, expert, operator);
    const [rows, columns] = operatorShape(this.spec, operator);
    return this.weights.readRange(name, elementOffset * itemBytes, rows * columns * itemBytes, into);
  }

  /**
   * Reads one stored factor of a group, as it is stored; for its shape see `latentFactorShapes`, or `shards.tensor` of
   * its name.
   *
   * @throws INVALID_ARGUMENT for a layer, group or factor that does not exist; and what {@link Shards.read} throws.
   */
  async readFactor(
    layer: number,
    group: number,
    factor: LatentFactor,
    into?: Uint8Array,
  ): Promise<Uint8Array> {
    const { groups } = this.layer(layer);
    if (groups.length === 0) {
      throw new MolaeError(
        'INVALID_ARGUMENT',
        `Layer ${layer} has no latent factors: read its experts with readExpert`,
      );
    }
    const found = groups[group];
    if (found === undefined) throw expected(`a group below ${groups.length}`, 'group', group);
    const shapes = latentFactorShapes({ ...this.spec, ...found, groupSize: found.experts.length });
    const stored = [...shapes.keys()];
    if (!stored.includes(factor)) throw expected(`one of ${stored.join(', ')}`, 'factor', factor);
    return this.shards.read(latentTensorName(this.family.expertsPrefix(layer), group, factor), into);
  }

  /** The experts of a MoE layer, routed and shared, on a device. See {@link loadExperts}. */
  loadExperts(layer: number, options: LoadOptions): Promise<Experts> {
    return loadExperts(this, layer, options);
  }

  /** A whole MoE layer on a device: router and experts. See {@link loadMoeBlock}. */
  loadMoeBlock(layer: number, options: LoadOptions): Promise<MoeBlock> {
    return loadMoeBlock(this, layer, options);
  }

  /** Closes all files. Reads after it are refused with DISPOSED. */
  close(): Promise<void> {
    return this.shards.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/**
 * Opens a checkpoint folder in Hugging Face's layout, as published or as converted by molae, and verifies that its
 * tensors are what its config.json says. Reads the headers only.
 *
 * @throws BAD_CHECKPOINT when a file is missing, cut off or lies; UNSUPPORTED_CHECKPOINT when it is sound but of a
 *   kind that molae does not know; IO.
 */
export async function openCheckpoint(path: string): Promise<Checkpoint> {
  if (typeof path !== 'string') throw expected('the path of a folder', 'path', path);
  const config = await ModelConfig.read(path);
  const found: Partial<Findings> = {};
  try {
    const findings = await verifyCheckpoint(config, () => Shards.open(path), found);
    return new Checkpoint({ path, config, ...findings });
  } catch (error) {
    await found.shards?.close();
    throw error;
  }
}

function summarize(layers: readonly number[]): string {
  return layers.length > 8
    ? `${layers.slice(0, 8).join(', ')}, … in all ${layers.length}`
    : layers.join(', ');
}
