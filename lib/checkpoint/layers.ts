import type { BlockDType, FloatDType, WeightDType } from '../dtype.ts';
import { largestLatentSize } from '../factorization/spec.ts';
import { OPERATORS, type Operator } from '../operators.ts';
import { type Family, locateExpert, type MoeSpec, operatorShape } from './family.ts';
import {
  expertFactor,
  type LatentFactor,
  latentFactorShapes,
  latentTensorName,
  type MolaeBlock,
  sharedFactor,
  storedFactorShape,
} from './latent-format.ts';
import { badCheckpoint, quote, unsupportedCheckpoint } from './problems.ts';
import type { ShardedTensor, Shards } from './shards.ts';
import type { Weights } from './weights.ts';

/** A group of experts that share latent spaces, as found in a checkpoint. */
export interface LatentGroup {
  /** The experts, in the order of their matrices in the group's `a` factors. */
  readonly experts: readonly number[];
  /** r of each factored operator. */
  readonly latentSizes: Readonly<Partial<Record<Operator, number>>>;
  /** Whether gate and up share one B. */
  readonly sharedGateUp: boolean;
}

/** The routed experts of one decoder layer, as found in a checkpoint. */
export interface MoeLayer {
  /** The decoder layer's index. */
  readonly layer: number;
  /** The dtype that each operator is read in, the same for all its experts and factors: `q8` or `q4` for factors in blocks. */
  readonly dtypes: Readonly<Record<Operator, WeightDType>>;
  /** The operators that are stored as latent factors; none in a dense layer. */
  readonly latentOperators: readonly Operator[];
  /** Empty in a dense layer. */
  readonly groups: readonly LatentGroup[];
}

export interface VerifiedLayers {
  readonly layers: ReadonlyMap<number, MoeLayer>;
  /** The tensors that hold the routed experts, dense or latent. */
  readonly expertTensors: ReadonlySet<string>;
  /** Those with the scales of quantized experts. */
  readonly expertScales: ReadonlySet<string>;
  /** In elements, of the tensors that are stored as bytes of blocks. */
  readonly blockShapes: ReadonlyMap<string, readonly number[]>;
}

/**
 * Holds a checkpoint's tensors against what its config says: every expert matrix or factor, router and shared
 * expert is there with its shape and a float dtype, one dtype for each operator of a layer; and nothing lies
 * among the experts that molae would overlook (a bias, a scale, one expert more).
 *
 * @param block the `molae` block of a converted checkpoint; undefined for a dense one.
 * @throws BAD_CHECKPOINT or UNSUPPORTED_CHECKPOINT naming the tensor.
 */
export function verifyLayers(
  shards: Shards,
  weights: Weights,
  family: Family,
  spec: MoeSpec,
  block: MolaeBlock | undefined,
): VerifiedLayers {
  const verifier = new Verifier(shards, weights, family, spec);
  const layers = new Map(spec.layers.map((layer) => [layer, verifier.layer(layer, block)]));
  verifier.refuseUnknownTensors();
  const { expertTensors, expertScales, blockShapes } = verifier;
  return { layers, expertTensors, expertScales, blockShapes };
}

class Verifier {
  readonly expertTensors = new Set<string>();
  readonly expertScales = new Set<string>();
  readonly blockShapes = new Map<string, readonly number[]>();
  readonly #shards: Shards;
  readonly #weights: Weights;
  readonly #family: Family;
  readonly #spec: MoeSpec;

  constructor(shards: Shards, weights: Weights, family: Family, spec: MoeSpec) {
    this.#shards = shards;
    this.#weights = weights;
    this.#family = family;
    this.#spec = spec;
  }

  layer(layer: number, block: MolaeBlock | undefined): MoeLayer {
    this.#router(layer);
    this.#sharedExpert(layer);
    const partition = block?.groups.get(layer);
    if (block && !partition) this.#refuseForgottenGroups(layer);
    const latentOperators = partition === undefined ? [] : (block?.operators ?? []);
    const dtypes = new DtypeLedger(this.#shards.folder, layer);
    for (const operator of OPERATORS) {
      if (!latentOperators.includes(operator)) this.#denseOperator(layer, operator, dtypes);
    }
    const groups = (partition ?? []).map((experts, group) =>
      this.#latentGroup(layer, group, experts, latentOperators, block?.quantization, dtypes),
    );
    return { layer, dtypes: dtypes.all(), latentOperators, groups };
  }

  /** Whatever else lies in an experts module would be lost in a conversion and ignored in a forward pass. */
  refuseUnknownTensors(): void {
    const prefixes = new Set(this.#spec.layers.map((layer) => this.#family.expertsPrefix(layer)));
    for (const name of this.#shards.tensors.keys()) {
      const end = name.search(/\.(latent_)?experts\./);
      if (end < 0 || !prefixes.has(name.slice(0, end))) continue;
      if (this.expertTensors.has(name) || this.expertScales.has(name)) continue;
      throw unsupportedCheckpoint(
        this.#shards.folder,
        `tensor ${quote(name)} is not among what config.json and ${this.#family.modelType} let expect of the experts`,
      );
    }
  }

  /** A layer without groups is dense: latent factors there mean that the partition was lost. */
  #refuseForgottenGroups(layer: number): void {
    const start = `${this.#family.expertsPrefix(layer)}.latent_experts.`;
    const name = [...this.#shards.tensors.keys()].find((other) => other.startsWith(start));
    if (name === undefined) return;
    throw badCheckpoint(
      this.#shards.folder,
      `molae.groups has no layer ${layer}: none of its experts is in a group, but there is the tensor ${quote(name)}`,
    );
  }

  #router(layer: number): void {
    const { numExperts, hiddenSize } = this.#spec;
    this.#floatTensor(this.#family.routerTensor(layer), [numExperts, hiddenSize]);
    const bias = this.#family.correctionBiasTensor?.(layer);
    if (bias === undefined) return;
    const isRow = this.#tensor(bias).shape.length === 2;
    this.#floatTensor(bias, isRow ? [1, numExperts] : [numExperts]);
  }

  #sharedExpert(layer: number): void {
    const { sharedExpert, hiddenSize } = this.#spec;
    const names = this.#family.sharedExpertTensors?.(layer);
    if (sharedExpert === undefined || names === undefined) return;
    const sizes = { hiddenSize, intermediateSize: sharedExpert.intermediateSize };
    for (const operator of OPERATORS) this.#floatTensor(names[operator], operatorShape(sizes, operator));
    if (sharedExpert.gated && names.router !== undefined) this.#floatTensor(names.router, [1, hiddenSize]);
  }

  #denseOperator(layer: number, operator: Operator, dtypes: DtypeLedger): void {
    for (let expert = 0; expert < this.#spec.numExperts; expert++) {
      const { name, shape } = locateExpert(this.#family, this.#spec, layer, expert, operator);
      dtypes.record(operator, name, this.#floatTensor(name, shape));
      this.expertTensors.add(name);
      const scales = this.#weights.scalesOf(name);
      if (scales !== undefined) this.expertScales.add(scales);
    }
  }

  #latentGroup(
    layer: number,
    group: number,
    experts: readonly number[],
    operators: readonly Operator[],
    quantization: BlockDType | undefined,
    dtypes: DtypeLedger,
  ): LatentGroup {
    const { hiddenSize, intermediateSize } = this.#spec;
    const prefix = this.#family.expertsPrefix(layer);
    const sharedGateUp =
      operators.includes('gate') &&
      operators.includes('up') &&
      this.#shards.tensors.has(latentTensorName(prefix, group, 'gate_up_b'));
    const latentSizes: Partial<Record<Operator, number>> = {};
    for (const operator of operators) {
      const limit = largestLatentSize(this.#spec, experts.length, operator, sharedGateUp);
      const { factor, dimensions, axis } = whereLatentSize(operator, sharedGateUp, quantization);
      const name = latentTensorName(prefix, group, factor);
      latentSizes[operator] = this.#latentSize(name, dimensions, axis, limit);
    }
    const sizes = { hiddenSize, intermediateSize, groupSize: experts.length, latentSizes, sharedGateUp };
    const shapes = latentFactorShapes(sizes);
    const checkFactor = (operator: Operator, factor: LatentFactor) => {
      const name = latentTensorName(prefix, group, factor);
      const shape = shapes.get(factor) ?? [];
      dtypes.record(operator, name, this.#factor(name, shape, quantization));
      this.expertTensors.add(name);
    };
    for (const operator of operators) {
      checkFactor(operator, expertFactor(operator));
      checkFactor(operator, sharedFactor(operator, sharedGateUp));
    }
    return { experts, latentSizes, sharedGateUp };
  }

  #factor(name: string, shape: readonly number[], quantization: BlockDType | undefined): WeightDType {
    if (quantization === undefined) return this.#floatTensor(name, shape);
    const { dtype } = this.#shapedTensor(name, storedFactorShape(shape, quantization));
    if (dtype !== 'U8') {
      const wanted = `bytes of ${quantization} blocks (U8)`;
      throw badCheckpoint(this.#shards.folder, `tensor ${quote(name)} has dtype ${dtype}, not ${wanted}`);
    }
    this.blockShapes.set(name, shape);
    return quantization;
  }

  /** Reads r off a factor of so many dimensions. */
  #latentSize(name: string, dimensions: number, axis: number, limit: number): number {
    const { shape } = this.#tensor(name);
    const size = shape[axis] ?? 0;
    if (shape.length !== dimensions || size < 1 || size > limit) {
      throw badCheckpoint(
        this.#shards.folder,
        `tensor ${quote(name)} has shape ${quote(shape)}; its latent size must be from 1 to ${limit}`,
      );
    }
    return size;
  }

  #tensor(name: string): ShardedTensor {
    return this.#shards.tensor(name);
  }

  #floatTensor(name: string, shape: readonly number[]): FloatDType {
    this.#shapedTensor(name, shape);
    return this.#weights.dtype(name);
  }

  #shapedTensor(name: string, shape: readonly number[]): ShardedTensor {
    const tensor = this.#tensor(name);
    if (`${tensor.shape}` !== `${shape}`) {
      throw badCheckpoint(
        this.#shards.folder,
        `tensor ${quote(name)} has shape ${quote(tensor.shape)}, but config.json asks for ${quote(shape)}`,
      );
    }
    return tensor;
  }
}

/** The size of which factor r is: of the shared one, unless its rows of r are filled up to whole blocks. */
function whereLatentSize(
  operator: Operator,
  sharedGateUp: boolean,
  quantization: BlockDType | undefined,
): { readonly factor: LatentFactor; readonly dimensions: number; readonly axis: number } {
  if (operator !== 'down') return { factor: sharedFactor(operator, sharedGateUp), dimensions: 2, axis: 0 };
  if (quantization === undefined) return { factor: 'down_b', dimensions: 2, axis: 1 };
  return { factor: 'down_a', dimensions: 3, axis: 1 };
}

/** Sees to it that each operator of a layer has one dtype. */
class DtypeLedger {
  readonly #folder: string;
  readonly #layer: number;
  readonly #first = new Map<Operator, { name: string; dtype: WeightDType }>();

  constructor(folder: string, layer: number) {
    this.#folder = folder;
    this.#layer = layer;
  }

  record(operator: Operator, name: string, dtype: WeightDType): void {
    const first = this.#first.get(operator);
    if (first === undefined) {
      this.#first.set(operator, { name, dtype });
    } else if (first.dtype !== dtype) {
      throw unsupportedCheckpoint(
        this.#folder,
        `tensor ${quote(name)} has dtype ${dtype}, but ${quote(first.name)} ${first.dtype}: one operator of a layer must have one dtype`,
      );
    }
  }

  all(): Record<Operator, WeightDType> {
    return { gate: this.#of('gate'), up: this.#of('up'), down: this.#of('down') };
  }

  #of(operator: Operator): WeightDType {
    const first = this.#first.get(operator);
    if (first === undefined)
      throw badCheckpoint(this.#folder, `layer ${this.#layer} has no ${operator} matrices`);
    return first.dtype;
  }
}
