import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { type Checkpoint, openCheckpoint } from '../checkpoint/checkpoint.ts';
import type { JsonObject } from '../checkpoint/json.ts';
import { buildLatentConfig, LATENT_FORMAT_VERSION } from '../checkpoint/latent-format.ts';
import { SafetensorsWriter, type TensorDeclaration } from '../checkpoint/safetensors/writer.ts';
import { countBytes, countParameters } from '../checkpoint/tally.ts';
import type { Weights } from '../checkpoint/weights.ts';
import { type Device, openDevice } from '../device.ts';
import { type BlockDType, checkBlockDType } from '../dtype.ts';
import { expected, MolaeError, throwIfAborted } from '../errors.ts';
import type { Operator } from '../experts.ts';
import type { FactorizationReport } from '../factorization/factorize.ts';
import type { FactorShapes, GroupFactors, LayerMethod, LayerWriter } from './layer-method.ts';
import { layOutShards, type OutputShard, replacedTensors, shardFileName } from './layout.ts';
import { OutputFolder } from './output-folder.ts';
import { copyPythonFiles, withAutoMap } from './python-files.ts';
import { copySideFiles, writeConfig, writeIndex } from './side-files.ts';
import { DenseSink, type FactorSink, LatentSink } from './sinks.ts';
import { type SizeOptions, StackedSvd } from './stacked-svd.ts';

export interface ConvertOptions extends SizeOptions {
  /** By default `openDevice('auto')`. */
  readonly device?: Device | undefined;
  /** `latent` (the default) stores the factors, `dense` A·B under the original names. */
  readonly format?: 'latent' | 'dense' | undefined;
  /**
   * Round the factors to blocks of 8 or 4 bits (`q8`, `q4`), which layers run as they are. Each expert's factors are fitted
   * to the rounded basis. For the latent format; CPU only.
   */
  readonly quantize?: BlockDType | undefined;
  /**
   * Write `modeling_molae.py` and `configuration_molae.py` beside the latent checkpoint, and name them in its config, so that
   * transformers (5 or later) loads it with `trust_remote_code`. Not for quantized weights, of the source or the factors.
   */
  readonly withPython?: boolean | undefined;
  /** Replace an existing checkpoint at the output. */
  readonly force?: boolean | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((progress: ConvertProgress) => void) | undefined;
}

export interface ConvertProgress {
  /** Pieces of work so far (expert matrices, in both passes); what a resumed run found finished counts too. */
  readonly done: number;
  readonly total: number;
  readonly layer: number;
  readonly operator: Operator;
  readonly group: number;
}

/** Before and after. */
export interface Change {
  readonly before: number;
  readonly after: number;
}

export interface LayerReport extends FactorizationReport {
  /** The decoder layer's index. */
  readonly layer: number;
}

export interface ConversionReport {
  readonly input: string;
  readonly output: string;
  /** `stacked-svd` or `calibrated`. */
  readonly method: string;
  readonly format: 'latent' | 'dense';
  /** The blocks that the factors were rounded to, where they were. */
  readonly quantization?: BlockDType;
  /** k, the largest where groups differ. */
  readonly groupSize: number;
  /** r of each operator: the mean where layers or groups differ; `layers` has them all. */
  readonly latentSizes: Readonly<Partial<Record<Operator, number>>>;
  /** How the planner came to the sizes, where it did. */
  readonly reason?: string;
  /** Elements of the routed experts as latent factors; with `--format dense` the output stores the products instead. */
  readonly expertParameters: Change;
  readonly parameters: Change;
  /** Bytes of all tensors in the files. */
  readonly bytes: Change;
  readonly seconds: number;
  /** The largest resident size that this process has had. */
  readonly peakBytes: number;
  /** Files that an earlier, stopped run had finished. */
  readonly resumedFiles: number;
  readonly layers: readonly LayerReport[];
}

/**
 * Converts a checkpoint folder into another one, expert by expert: memory stays at one expert, the eigen-problem of the
 * hidden size (24·n² bytes) and one group's factors, whatever the checkpoint's size.
 *
 * The output appears under its name when it is complete. A run that was stopped goes on where it was when it is called
 * again with the same source and options.
 *
 * @throws MolaeError `INVALID_ARGUMENT`, `BAD_CHECKPOINT`, `UNSUPPORTED_CHECKPOINT`, `OUTPUT_EXISTS`, `OUTPUT_BUSY`, `NON_FINITE` naming
 * tensor and position, `ABORTED`, `IO`.
 */
export async function convertCheckpoint(
  input: string,
  output: string,
  options: ConvertOptions,
): Promise<ConversionReport> {
  if (typeof output !== 'string' || output === '') throw expected('the path of a folder', 'output', output);
  throwIfAborted(options.signal);
  await using checkpoint = await openCheckpoint(input);
  checkSource(checkpoint);
  const device = options.device ?? (await openDevice('auto'));
  try {
    return await runConversion(checkpoint, output, options, new StackedSvd(checkpoint, device, options));
  } finally {
    if (!options.device) device.dispose();
  }
}

/** What every conversion can be told, whatever makes the factors. */
export type OutputOptions = Pick<
  ConvertOptions,
  'format' | 'quantize' | 'withPython' | 'force' | 'signal' | 'onProgress'
>;

/** @internal Converts with the factors that a method makes. */
export function runConversion(
  checkpoint: Checkpoint,
  output: string,
  options: OutputOptions,
  method: LayerMethod,
): Promise<ConversionReport> {
  return new Conversion(checkpoint, output, options, method).run();
}

/** @internal Throws unless this can be converted. */
export function checkSource(checkpoint: Checkpoint): void {
  if (checkpoint.format !== 'latent') return;
  throw new MolaeError(
    'INVALID_ARGUMENT',
    `${checkpoint.path} was converted already: convert the checkpoint it came from`,
  );
}

function checkQuantize({ format, quantize }: OutputOptions): void {
  if (quantize === undefined) return;
  checkBlockDType(quantize, 'quantize');
  if (format !== 'dense') return;
  throw new MolaeError(
    'INVALID_ARGUMENT',
    'quantize is for the latent format: dense experts keep the dtype of the source',
  );
}

/** Refuses what transformers could not load. */
function checkPython({ config }: Checkpoint, { format, quantize }: OutputOptions): void {
  if (quantize !== undefined) {
    throw new MolaeError(
      'INVALID_ARGUMENT',
      'withPython is not for quantized factors: transformers knows no such blocks',
    );
  }
  if (format === 'dense') {
    throw new MolaeError(
      'INVALID_ARGUMENT',
      'withPython is for the latent format: transformers loads a dense one as it is',
    );
  }
  if (config.quantization_config !== undefined && config.quantization_config !== null) {
    throw new MolaeError(
      'INVALID_ARGUMENT',
      'withPython is not for sources with quantized weights: what is not converted stays quantized',
    );
  }
}

/** The source's config for an output in which nothing is quantized any more. */
function expandedConfig({ quantization_config: _, ...rest }: JsonObject): JsonObject {
  return rest;
}

/** Over layers and groups; whole numbers where all are alike. */
function meanLatentSizes(
  { operators, groups, latentSize }: FactorShapes,
  layers: readonly number[],
): Partial<Record<Operator, number>> {
  const mean = (operator: Operator) => {
    const sizes = layers.flatMap((layer) =>
      groups(layer).map((_, group) => latentSize(layer, operator, group)),
    );
    return sizes.reduce((sum, size) => sum + size, 0) / sizes.length;
  };
  return Object.fromEntries(operators.map((operator) => [operator, mean(operator)]));
}

/** Copied tensors go through memory in pieces of this size. */
const COPY_BYTES = 16 * 1024 ** 2;

class Conversion {
  readonly #checkpoint: Checkpoint;
  readonly #output: string;
  readonly #options: OutputOptions;
  readonly #method: LayerMethod;
  readonly #format: 'latent' | 'dense';
  readonly #shards: readonly OutputShard[];
  readonly #sink: FactorSink;
  #done = 0;

  constructor(checkpoint: Checkpoint, output: string, options: OutputOptions, method: LayerMethod) {
    const { format = 'latent' } = options;
    if (format !== 'latent' && format !== 'dense') throw expected('latent or dense', 'format', format);
    checkQuantize(options);
    if (options.withPython) checkPython(checkpoint, options);
    this.#checkpoint = checkpoint;
    this.#output = output;
    this.#options = options;
    this.#method = method;
    this.#format = format;
    this.#shards = layOutShards(checkpoint, { shapes: method.shapes, format });
    this.#sink =
      format === 'dense'
        ? new DenseSink(checkpoint, method.shapes.groups)
        : new LatentSink(checkpoint, method.shapes.sharedGateUp);
  }

  async run(): Promise<ConversionReport> {
    const started = performance.now();
    const folder = await OutputFolder.open(
      this.#checkpoint.path,
      this.#output,
      await this.#plan(),
      this.#options.force ?? false,
    );
    try {
      if (this.#method.memory !== undefined) await folder.remember(this.#method.memory);
      const { layers, resumedFiles } = await this.#makeShards(folder);
      await this.#writeSideFiles(folder);
      await folder.commit();
      return this.#report(folder, layers, resumedFiles, (performance.now() - started) / 1000);
    } catch (error) {
      // What was finished stays for the next run where that can succeed.
      const resumable = error instanceof MolaeError && (error.code === 'ABORTED' || error.code === 'IO');
      if (!resumable) await folder.discard();
      throw error;
    } finally {
      await folder.close();
    }
  }

  /** Everything that the bytes of the result depend on. */
  async #plan(): Promise<unknown> {
    const { path, shards, config, spec } = this.#checkpoint;
    const files = await Promise.all(
      shards.files.map(async (name) => {
        const { size, mtimeMs } = await stat(join(path, name));
        return [name, size, mtimeMs];
      }),
    );
    const { name, fingerprint } = this.#method;
    const shapes = this.#shards.flatMap(({ tensors }) => tensors);
    return {
      version: LATENT_FORMAT_VERSION,
      method: name,
      quantization: this.#method.shapes.quantization ?? null,
      groups: spec.layers.map((layer) => this.#method.shapes.groups(layer)),
      fingerprint,
      format: this.#format,
      shapes,
      config,
      files,
    };
  }

  async #makeShards(folder: OutputFolder): Promise<{ layers: LayerReport[]; resumedFiles: number }> {
    const files = this.#shards.map((shard, index) => ({
      shard,
      name: shardFileName(index, this.#shards.length),
    }));
    const reports = new Map<number, LayerReport[]>();
    const open: typeof files = [];
    for (const file of files) {
      const finished = await folder.finished(file.name);
      if (!Array.isArray(finished)) {
        open.push(file);
      } else if (file.shard.kind === 'layer') {
        reports.set(file.shard.layer, finished as LayerReport[]);
        this.#done += this.#method.stepsPerLayer;
      }
    }
    for (const { shard, name } of open) {
      if (shard.kind !== 'copy') continue;
      throwIfAborted(this.#options.signal);
      await this.#makeFile(folder, name, shard.tensors, (writer) => this.#copy(writer, shard.tensors));
    }
    const layerFiles = new Map(
      open.flatMap(({ shard, name }) => (shard.kind === 'layer' ? [[shard.layer, { shard, name }]] : [])),
    );
    const write: LayerWriter = async (layer, groups) => {
      const { name, shard } = layerFiles.get(layer) as { name: string; shard: OutputShard };
      const report = await this.#makeFile(folder, name, shard.tensors, (writer) =>
        this.#writeLayer(writer, layer, groups),
      );
      reports.set(layer, report);
    };
    if (layerFiles.size > 0) {
      await this.#method.run([...layerFiles.keys()], write, (at) => this.#step(at));
    }
    const layers = this.#checkpoint.spec.layers.flatMap((layer) => reports.get(layer) ?? []);
    return { layers, resumedFiles: files.length - open.length };
  }

  async #makeFile(
    folder: OutputFolder,
    name: string,
    tensors: readonly TensorDeclaration[],
    fill: (writer: SafetensorsWriter) => Promise<LayerReport[]>,
  ): Promise<LayerReport[]> {
    await using writer = await SafetensorsWriter.create(join(folder.partial, name), tensors);
    const report = await fill(writer);
    await writer.finish();
    await folder.finish(name, report);
    return report;
  }

  async #copy(writer: SafetensorsWriter, tensors: readonly TensorDeclaration[]): Promise<LayerReport[]> {
    const { shards, weights } = this.#checkpoint;
    const buffer = new Uint8Array(
      Math.min(
        COPY_BYTES,
        tensors.reduce((most, { name }) => Math.max(most, shards.tensor(name).byteLength), 0),
      ),
    );
    for (const { name, dtype } of tensors) {
      const { byteLength, dtype: stored } = shards.tensor(name);
      if (dtype !== stored) {
        await this.#copyExpanded(writer, name, weights);
        continue;
      }
      for (let begin = 0; begin < byteLength; begin += COPY_BYTES) {
        throwIfAborted(this.#options.signal);
        const length = Math.min(COPY_BYTES, byteLength - begin);
        await writer.write(name, await shards.readRange(name, begin, length, buffer), begin);
      }
    }
    return [];
  }

  async #copyExpanded(writer: SafetensorsWriter, name: string, weights: Weights): Promise<void> {
    for await (const { bytes, byteOffset } of weights.pieces(name, COPY_BYTES)) {
      throwIfAborted(this.#options.signal);
      await writer.write(name, bytes, byteOffset);
    }
  }

  async #writeLayer(
    writer: SafetensorsWriter,
    layer: number,
    groups: AsyncIterable<GroupFactors>,
  ): Promise<LayerReport[]> {
    const reports: LayerReport[] = [];
    for await (const { group, factors } of groups) {
      for (const [operator, each] of factors) {
        await this.#sink.write(writer, layer, group, operator, each);
        reports.push({ layer, ...each.report });
      }
    }
    return reports;
  }

  async #writeSideFiles(folder: OutputFolder): Promise<void> {
    const { config, path } = this.#checkpoint;
    const count = this.#shards.length;
    await copySideFiles(path, folder.partial);
    const latent = this.#latentConfig(config);
    if (this.#options.withPython) await copyPythonFiles(folder.partial);
    const written = this.#options.withPython ? withAutoMap(latent) : latent;
    await writeConfig(path, folder.partial, this.#format === 'dense' ? expandedConfig(config) : written);
    if (count === 1) return;
    const weightMap = new Map(
      this.#shards.flatMap((shard, index) =>
        shard.tensors.map(({ name }) => [name, shardFileName(index, count)] as const),
      ),
    );
    await writeIndex(folder.partial, weightMap, countBytes(this.#tensors()));
  }

  /** Readers of the format ignore what they do not know in the `molae` block. */
  #latentConfig(config: JsonObject): JsonObject {
    const latent = buildLatentConfig(config, this.#molaeBlock());
    const { provenance } = this.#method;
    if (provenance === undefined) return latent;
    return { ...latent, molae: { ...(latent.molae as JsonObject), provenance } };
  }

  #molaeBlock() {
    const { groups, operators, quantization } = this.#method.shapes;
    return {
      version: LATENT_FORMAT_VERSION,
      method: this.#method.name,
      operators,
      quantization,
      groups: new Map(this.#checkpoint.spec.layers.map((layer) => [layer, groups(layer)])),
    };
  }

  #tensors(): TensorDeclaration[] {
    return this.#shards.flatMap((shard) => shard.tensors);
  }

  #report(
    folder: OutputFolder,
    layers: readonly LayerReport[],
    resumedFiles: number,
    seconds: number,
  ): ConversionReport {
    const { path, expertParameters: before, parameters, byteLength, spec } = this.#checkpoint;
    const { name: method, reason, shapes } = this.#method;
    const after = this.#latentExpertParameters();
    return {
      input: path,
      output: folder.path,
      method,
      format: this.#format,
      ...(shapes.quantization !== undefined && { quantization: shapes.quantization }),
      groupSize: Math.max(
        ...spec.layers.flatMap((layer) => shapes.groups(layer).map(({ length }) => length)),
      ),
      latentSizes: meanLatentSizes(shapes, spec.layers),
      ...(reason !== undefined && { reason }),
      expertParameters: { before, after },
      parameters: { before: parameters, after: parameters - this.#countScales() - before + after },
      bytes: { before: byteLength, after: countBytes(this.#tensors()) },
      seconds,
      peakBytes: process.resourceUsage().maxRSS * 1024,
      resumedFiles,
      layers,
    };
  }

  /** Elements of the routed experts in latent form, whichever format is written. */
  #latentExpertParameters(): number {
    const { shards, expertTensors } = this.#checkpoint;
    const shapes = { ...this.#method.shapes, quantization: undefined };
    const latent = layOutShards(this.#checkpoint, { shapes, format: 'latent' });
    const factors = latent.flatMap((shard) => (shard.kind === 'layer' ? shard.tensors : []));
    const replaced = replacedTensors(this.#checkpoint, this.#method.shapes.operators);
    const kept = [...expertTensors].filter((name) => !replaced.has(name));
    return countParameters(factors) + countParameters(kept.map((name) => shards.tensor(name)));
  }

  /** Elements of the scales that go with converted experts. */
  #countScales(): number {
    const { shards, expertScales } = this.#checkpoint;
    const replaced = replacedTensors(this.#checkpoint, this.#method.shapes.operators);
    const gone = [...expertScales].filter((name) => replaced.has(name));
    return countParameters(gone.map((name) => shards.tensor(name)));
  }

  #step(at: { layer: number; operator: Operator; group: number }): void {
    this.#done++;
    const total = this.#method.stepsPerLayer * this.#checkpoint.spec.layers.length;
    this.#options.onProgress?.({ done: this.#done, total, ...at });
  }
}
