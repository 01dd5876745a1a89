import { type BlockDType, byteCount, isBlockDType } from '../dtype.ts';
import { OPERATORS, type Operator } from '../operators.ts';
import type { ModelConfig } from './config.ts';
import type { MoeSpec } from './family.ts';
import { isJsonObject, type JsonObject } from './json.ts';
import { badCheckpoint, quote, unsupportedCheckpoint } from './problems.ts';

/** `model_type` of a converted checkpoint: no loader can mistake it for the source's family. */
export const LATENT_MODEL_TYPE = 'molae';

/** What this molae writes and reads. */
export const LATENT_FORMAT_VERSION = 1;

/** The stored factors. `a` is each expert's own, `b` is shared by its group; `gate_up_b` serves gate and up. */
const LATENT_FACTORS = ['gate_a', 'gate_b', 'up_a', 'up_b', 'gate_up_b', 'down_a', 'down_b'] as const;

/**
 * The name of a stored factor: `a` is each expert's own, `b` its group's, `gate_up_b` the one that gate and up share.
 */
export type LatentFactor = (typeof LATENT_FACTORS)[number];

/** The `molae` block of a converted checkpoint's config.json. */
export interface MolaeBlock {
  readonly version: number;
  /** How the factors were found, such as `stacked-svd`. */
  readonly method: string;
  /** The operators that were factored; the others keep their original tensors. */
  readonly operators: readonly Operator[];
  /** What the factors are rounded to; undefined where they have the source's dtype. */
  readonly quantization?: BlockDType | undefined;
  /** Decoder layer → groups → experts. The order of a group's experts is the order of the matrices in its `a`. */
  readonly groups: ReadonlyMap<number, readonly (readonly number[])[]>;
}

/** The sizes of one group's factors. */
interface LatentGroupSizes {
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  /** k: experts in this group. */
  readonly groupSize: number;
  /** r of each factored operator. */
  readonly latentSizes: Readonly<Partial<Record<Operator, number>>>;
  /** Whether gate and up share one B; their r must then be equal. */
  readonly sharedGateUp: boolean;
}

/** `model.layers.3.mlp`, 0, `gate_a` → `model.layers.3.mlp.latent_experts.0.gate_a`. */
export function latentTensorName(prefix: string, group: number, factor: LatentFactor): string {
  return `${prefix}.latent_experts.${group}.${factor}`;
}

/** The factor that holds each expert's own part: [k, m, r], for down [k, r, m]. */
export function expertFactor(operator: Operator): LatentFactor {
  return `${operator}_a`;
}

/** The factor that the group shares: [r, n], for down [n, r]. */
export function sharedFactor(operator: Operator, sharedGateUp: boolean): LatentFactor {
  return sharedGateUp && operator !== 'down' ? 'gate_up_b' : `${operator}_b`;
}

/** The factors of a group with their shapes, in the order in which they are written. */
export function latentFactorShapes(sizes: LatentGroupSizes): Map<LatentFactor, readonly number[]> {
  const { hiddenSize: n, intermediateSize: m, groupSize: k, latentSizes, sharedGateUp } = sizes;
  const shapes = new Map<LatentFactor, readonly number[]>();
  for (const operator of OPERATORS) {
    const r = latentSizes[operator];
    if (r === undefined) continue;
    shapes.set(expertFactor(operator), operator === 'down' ? [k, r, m] : [k, m, r]);
    shapes.set(sharedFactor(operator, sharedGateUp), operator === 'down' ? [n, r] : [r, n]);
  }
  return shapes;
}

/**
 * The shape that a factor is stored with: its own, or in blocks, bytes (U8) with whole blocks along each row. In
 * safetensors no dtype stands for blocks.
 */
export function storedFactorShape(
  shape: readonly number[],
  quantization: BlockDType | undefined,
): readonly number[] {
  if (quantization === undefined) return shape;
  return [...shape.slice(0, -1), byteCount(quantization, [1, shape.at(-1) ?? 0])];
}

/**
 * The config.json of a converted checkpoint, from that of its source. Without `auto_map`: the classes that the source names
 * there for transformers know nothing of latent experts.
 */
export function buildLatentConfig(
  { auto_map: _, ...source }: JsonObject,
  block: MolaeBlock,
): Record<string, unknown> {
  const { version, method, operators, quantization, groups } = block;
  return {
    ...source,
    model_type: LATENT_MODEL_TYPE,
    base_model_type: source.model_type === LATENT_MODEL_TYPE ? source.base_model_type : source.model_type,
    molae: {
      version,
      method,
      operators,
      ...(quantization !== undefined && { quantization }),
      groups: Object.fromEntries(groups),
    },
  };
}

/**
 * Reads and validates the `molae` block: known version and quantization, operators out of gate, up, down, and for each layer
 * groups that have every expert exactly once. MoE layers that it leaves out are dense.
 *
 * @throws BAD_CHECKPOINT naming the field, UNSUPPORTED_CHECKPOINT for a later version.
 */
export function parseMolaeBlock(config: ModelConfig, spec: MoeSpec): MolaeBlock {
  const block = config.optionalObject('molae');
  if (block === undefined) throw badCheckpoint(config.file, 'the field molae is missing');
  const { version, method, operators, quantization, groups } = block;
  if (version !== LATENT_FORMAT_VERSION) {
    if (typeof version === 'number' && version > LATENT_FORMAT_VERSION) {
      throw unsupportedCheckpoint(
        config.file,
        `molae.version is ${version}; this molae reads version ${LATENT_FORMAT_VERSION}`,
      );
    }
    throw badCheckpoint(config.file, `molae.version is ${quote(version)}, not ${LATENT_FORMAT_VERSION}`);
  }
  if (typeof method !== 'string')
    throw badCheckpoint(config.file, `molae.method is ${quote(method)}, not a string`);
  if (quantization !== undefined && !isBlockDType(quantization)) {
    throw unsupportedCheckpoint(
      config.file,
      `molae.quantization is ${quote(quantization)}; this molae reads q8 and q4`,
    );
  }
  return {
    version,
    method,
    operators: parseOperators(operators, config.file),
    quantization,
    groups: parseGroups(groups, config.file, spec),
  };
}

function parseOperators(value: unknown, file: string): readonly Operator[] {
  const isValid =
    Array.isArray(value) &&
    value.length > 0 &&
    new Set(value).size === value.length &&
    value.every((item) => (OPERATORS as readonly unknown[]).includes(item));
  if (!isValid) {
    throw badCheckpoint(
      file,
      `molae.operators is ${quote(value)}, not some of ${OPERATORS.join(', ')}, each once`,
    );
  }
  return OPERATORS.filter((operator) => value.includes(operator));
}

function parseGroups(value: unknown, file: string, spec: MoeSpec): MolaeBlock['groups'] {
  if (!isJsonObject(value)) throw badCheckpoint(file, `molae.groups is ${quote(value)}, not an object`);
  const layers = new Set(spec.layers);
  const groups = new Map<number, readonly (readonly number[])[]>();
  for (const [key, partition] of Object.entries(value)) {
    const layer = Number(key);
    if (!layers.has(layer) || String(layer) !== key) {
      throw badCheckpoint(
        file,
        `molae.groups: ${quote(key)} is not one of the MoE layers ${quote(spec.layers)}`,
      );
    }
    groups.set(layer, parsePartition(partition, `${file}: molae.groups: layer ${layer}`, spec.numExperts));
  }
  if (groups.size === 0) throw badCheckpoint(file, 'molae.groups is empty');
  return new Map([...groups].sort(([a], [b]) => a - b));
}

function parsePartition(value: unknown, where: string, numExperts: number): readonly (readonly number[])[] {
  if (!Array.isArray(value)) throw badCheckpoint(where, `is ${quote(value)}, not an array of groups`);
  const seen = new Set<number>();
  const partition = value.map((group: unknown, index) => {
    if (!Array.isArray(group) || group.length === 0) {
      throw badCheckpoint(where, `group ${index} is ${quote(group)}, not a non-empty array of experts`);
    }
    return group.map((expert: unknown) => {
      if (typeof expert !== 'number' || !Number.isInteger(expert) || expert < 0 || expert >= numExperts) {
        throw badCheckpoint(
          where,
          `group ${index}: ${quote(expert)} is not an expert from 0 to ${numExperts - 1}`,
        );
      }
      if (seen.has(expert)) throw badCheckpoint(where, `group ${index}: expert ${expert} is in two places`);
      seen.add(expert);
      return expert;
    });
  });
  if (seen.size !== numExperts) {
    const first = Array.from({ length: numExperts }, (_, expert) => expert).find(
      (expert) => !seen.has(expert),
    );
    throw badCheckpoint(
      where,
      `expert ${first} is in no group; the groups have ${seen.size} of the ${numExperts} experts`,
    );
  }
  return partition;
}
