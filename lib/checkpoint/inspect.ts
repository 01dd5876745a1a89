import type { BlockDType } from '../dtype.ts';
import { expected, MolaeError } from '../errors.ts';
import { OPERATORS, type Operator } from '../operators.ts';
import { ModelConfig } from './config.ts';
import { checkDecoderShapes } from './decoder-shapes.ts';
import { baseModelType, describeDecoder } from './families/index.ts';
import type { MoeSpec } from './family.ts';
import { LATENT_MODEL_TYPE, type MolaeBlock } from './latent-format.ts';
import type { MoeLayer, VerifiedLayers } from './layers.ts';
import { quote } from './problems.ts';
import type { SafetensorsDtype } from './safetensors/dtype.ts';
import { Shards } from './shards.ts';
import { countBytes, countParameters, elementShapes } from './tally.ts';
import { type Findings, verifyCheckpoint } from './verify.ts';

/** What can be said of a checkpoint without reading a weight, also of one that molae cannot convert. */
export interface Inspection {
  readonly path: string;
  /** `model_type`; of the source, for a converted checkpoint. */
  readonly family: string;
  readonly format: 'dense' | 'latent';
  readonly supported: boolean;
  /** Why not; empty when it is supported. */
  readonly unsupported: readonly string[];
  /** Whether the whole model runs here, too: `Model`, `molae eval`, `molae generate`. */
  readonly runs: boolean;
  /** Why it does not, of a supported checkpoint: its experts still run and convert. */
  readonly cannotRun?: string;
  /** What is odd but does no harm; empty where nothing is. */
  readonly warnings: readonly string[];
  /** The sizes; where the family is unknown, as far as the usual field names give them, else null. */
  readonly hiddenSize: number | null;
  readonly intermediateSize: number | null;
  readonly numExperts: number | null;
  readonly topK: number | null;
  readonly numLayers: number | null;
  /** Decoder layers with routed experts; where the family is unknown, as the tensor names have it. */
  readonly moeLayers: readonly number[];
  /** The number of tensors, of files, of bytes in the tensors. */
  readonly tensors: number;
  readonly files: number;
  readonly bytes: number;
  readonly parameters: number;
  /** Elements of the routed experts in all layers, as stored. */
  readonly expertParameters: number;
  /** Tensors of each dtype, by its name in the files. */
  readonly dtypes: Readonly<Partial<Record<SafetensorsDtype, number>>>;
  /** Of a converted checkpoint: how it was made and the distinct sizes found, ascending. */
  readonly latent?: {
    readonly method: string;
    readonly operators: readonly Operator[];
    /** `q8` or `q4` where the factors are in blocks. */
    readonly quantization?: BlockDType | undefined;
    readonly sharedGateUp: boolean;
    readonly groupSizes: readonly number[];
    /** Whether the groups of all layers are runs of experts in the order of their numbers. */
    readonly consecutiveGroups: boolean;
    readonly latentSizes: Readonly<Partial<Record<Operator, readonly number[]>>>;
  };
}

type Sizes = Pick<Inspection, 'hiddenSize' | 'intermediateSize' | 'numExperts' | 'topK' | 'numLayers'>;

/** What {@link understand} found out. Later parts are missing when an earlier one is not supported. */
interface Understanding extends Pick<Inspection, 'runs' | 'cannotRun'> {
  readonly spec: MoeSpec | undefined;
  readonly verified: VerifiedLayers | undefined;
  readonly latent: Inspection['latent'];
  readonly unsupported: readonly string[];
}

/**
 * Reports on a checkpoint folder. A sound checkpoint that molae does not support is reported with the reasons.
 *
 * @throws BAD_CHECKPOINT when a file is missing, cut off or lies; IO.
 */
export async function inspectCheckpoint(path: string): Promise<Inspection> {
  if (typeof path !== 'string') throw expected('the path of a folder', 'path', path);
  const config = await ModelConfig.read(path);
  const family = baseModelType(config);
  const shards = await Shards.open(path);
  try {
    const { spec, verified, latent, unsupported, ...running } = await understand(config, shards);
    const names = verified?.expertTensors ?? guessExpertTensors(shards);
    const tensors = [...shards.tensors.values()];
    const blocks = verified ?? { blockShapes: new Map() };
    return {
      path,
      family,
      format: config.string('model_type') === LATENT_MODEL_TYPE ? 'latent' : 'dense',
      supported: unsupported.length === 0,
      ...running,
      unsupported,
      warnings: leftoverWarnings(shards),
      ...(spec === undefined ? guessSizes(config) : sizesOf(spec)),
      moeLayers: spec?.layers ?? guessLayers(names),
      tensors: tensors.length,
      files: shards.files.length,
      bytes: countBytes(tensors),
      parameters: countParameters(elementShapes(shards.tensors.keys(), shards, blocks)),
      expertParameters: countParameters(elementShapes(names, shards, blocks)),
      dtypes: tally(tensors.map(({ dtype }) => dtype)),
      ...(latent === undefined ? {} : { latent }),
    };
  } finally {
    await shards.close();
  }
}

/** As openCheckpoint goes, but what is not supported ends it with a reason instead of an error. */
async function understand(config: ModelConfig, shards: Shards): Promise<Understanding> {
  const found: Partial<Findings> = {};
  const unsupported: string[] = [];
  try {
    await verifyCheckpoint(config, async () => shards, found);
  } catch (error) {
    if (!(error instanceof MolaeError) || error.code !== 'UNSUPPORTED_CHECKPOINT') throw error;
    unsupported.push(error.message);
  }
  const { spec, molae, verified } = found;
  const latent = molae && verified && latentOf(molae, [...verified.layers.values()]);
  const running = unsupported.length === 0 ? howItRuns(config, shards) : { runs: false };
  return { spec, verified, latent, unsupported, ...running };
}

/** Also what is missing or senseless counts as a reason only: a conversion by weights needs none of it. */
function howItRuns(config: ModelConfig, shards: Shards): Pick<Inspection, 'runs' | 'cannotRun'> {
  try {
    checkDecoderShapes(shards, describeDecoder(config));
    return { runs: true };
  } catch (error) {
    if (!(error instanceof MolaeError)) throw error;
    return { runs: false, cannotRun: error.message };
  }
}

function latentOf({ method, operators, quantization }: MolaeBlock, layers: readonly MoeLayer[]) {
  const made = { method, operators, ...(quantization !== undefined && { quantization }) };
  return { ...made, ...latentSizesOf(layers) };
}

/** Tensors that a shard holds but the index leaves out, a line for each shard. */
function leftoverWarnings({ leftovers }: Shards): string[] {
  return [...leftovers].map(([shard, names]) => {
    const shown = names.slice(0, 3).map(quote).join(', ');
    const more = names.length > 3 ? ` and ${names.length - 3} more` : '';
    return `${shard} holds ${shown}${more}, which the index does not place there: ignored`;
  });
}

function latentSizesOf(layers: readonly MoeLayer[]) {
  const groups = layers.flatMap((layer) => layer.groups);
  const latentSizes: Partial<Record<Operator, readonly number[]>> = {};
  for (const operator of OPERATORS) {
    const sizes = groups.flatMap((group) => group.latentSizes[operator] ?? []);
    if (sizes.length > 0) latentSizes[operator] = distinct(sizes);
  }
  return {
    sharedGateUp: groups.some((group) => group.sharedGateUp),
    groupSizes: distinct(groups.map((group) => group.experts.length)),
    consecutiveGroups: layers.every((layer) =>
      layer.groups.flatMap((group) => group.experts).every((expert, i) => expert === i),
    ),
    latentSizes,
  };
}

function sizesOf({ hiddenSize, intermediateSize, numExperts, topK, numLayers }: MoeSpec): Sizes {
  return { hiddenSize, intermediateSize, numExperts, topK, numLayers };
}

/** The usual field names, also inside `text_config`, where multimodal models keep them. */
function guessSizes(config: ModelConfig): Sizes {
  const textConfig = config.value('text_config');
  const nested =
    typeof textConfig === 'object' && textConfig !== null ? (textConfig as Record<string, unknown>) : {};
  const guess = (...fields: string[]): number | null => {
    const values = fields.flatMap((field) => [config.value(field), nested[field]]);
    const found = values.find(
      (value) => typeof value === 'number' && Number.isSafeInteger(value) && value >= 0,
    );
    return typeof found === 'number' ? found : null;
  };
  return {
    hiddenSize: guess('hidden_size'),
    intermediateSize: guess('moe_intermediate_size', 'intermediate_size'),
    numExperts: guess('num_experts', 'num_local_experts', 'n_routed_experts'),
    topK: guess('num_experts_per_tok'),
    numLayers: guess('num_hidden_layers'),
  };
}

/** Nearly every family has `.experts.` in the names of its routed experts, and of nothing else but the format's own. */
function guessExpertTensors(shards: Shards): ReadonlySet<string> {
  return new Set([...shards.tensors.keys()].filter((name) => /\.(latent_)?experts\./.test(name)));
}

function guessLayers(expertTensors: ReadonlySet<string>): number[] {
  return distinct(
    [...expertTensors].flatMap((name) => /\.layers\.(\d+)\./.exec(name)?.[1] ?? []).map(Number),
  );
}

function distinct(values: readonly number[]): number[] {
  return [...new Set(values)].sort((a, b) => a - b);
}

function tally(dtypes: readonly SafetensorsDtype[]): Partial<Record<SafetensorsDtype, number>> {
  const counts: Partial<Record<SafetensorsDtype, number>> = {};
  for (const dtype of dtypes) counts[dtype] = (counts[dtype] ?? 0) + 1;
  return counts;
}
