import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { planConversion } from '../../analysis.ts';
import { type Device, openDevice } from '../../device.ts';
import { expected, MolaeError, throwIfAborted } from '../../errors.ts';
import type { Operator } from '../../experts.ts';
import {
  type CheckedSpec,
  checkSpec,
  type FactorizationReport,
  type FactorizationSpec,
  factorizeGroup,
  loadOrder,
  NonFiniteExpertError,
  resolveGroups,
} from '../../factorize.ts';
import { type Checkpoint, openCheckpoint } from '../checkpoint.ts';
import { locateExpert } from '../family.ts';
import type { JsonObject } from '../json.ts';
import { buildLatentConfig, LATENT_FORMAT_VERSION } from '../latent-format.ts';
import { SafetensorsWriter, type TensorDeclaration } from '../safetensors/writer.ts';
import { countBytes, countParameters } from '../tally.ts';
import { tensorDType } from '../tensors.ts';
import type { Weights } from '../weights.ts';
import { ExpertReader, ReadBuffers } from './expert-reader.ts';
import { layOutShards, type OutputShard, replacedTensors, shardFileName } from './layout.ts';
import { OutputFolder } from './output-folder.ts';
import { copyPythonFiles, withAutoMap } from './python-files.ts';
import { copySideFiles, writeConfig, writeIndex } from './side-files.ts';
import { DenseSink, type FactorSink, LatentSink } from './sinks.ts';

export interface ConvertOptions extends Omit<FactorizationSpec, 'latentSize'> {
  /** r, for all operators or for each. Exactly one of `latentSize` and `targetRatio` is needed. */
  readonly latentSize?: FactorizationSpec['latentSize'] | undefined;
  /** Remove at least this share of the routed experts' parameters, between 0 and 1. */
  readonly targetRatio?: number | undefined;
  /** k; without it (and `groups`) the planner chooses, see `reason` in the report. */
  readonly groupSize?: number | undefined;
  /** Explicit groups, the same in every layer: a partition of the experts. */
  readonly groups?: readonly (readonly number[])[] | undefined;
  /** By default `openDevice('auto')`. */
  readonly device?: Device | undefined;
  /** `latent` (the default) stores the factors, `dense` A·B under the original names. */
  readonly format?: 'latent' | 'dense' | undefined;
  /**
   * Write `modeling_molae.py` and `configuration_molae.py` beside the latent checkpoint, and name them in its config, so that
   * transformers (5 or later) loads it with `trust_remote_code`. Not for sources with quantized weights.
   */
  readonly withPython?: boolean | undefined;
  /** Replace an existing checkpoint at the output. */
  readonly force?: boolean | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((progress: ConvertProgress) => void) | undefined;
}

export interface ConvertProgress {
  /** Expert matrices passed so far, both passes; what a resumed run found finished counts too. */
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
  readonly method: 'stacked-svd';
  readonly format: 'latent' | 'dense';
  /** k, the largest where groups differ. */
  readonly groupSize: number;
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
  if (checkpoint.format === 'latent') {
    throw new MolaeError(
      'INVALID_ARGUMENT',
      `${input} was converted already: convert the checkpoint it came from`,
    );
  }
  const device = options.device ?? (await openDevice('auto'));
  try {
    return await new Conversion(checkpoint, output, device, options).run();
  } finally {
    if (!options.device) device.dispose();
  }
}

interface Sizes {
  readonly groups: readonly (readonly number[])[];
  readonly spec: CheckedSpec;
  readonly reason?: string;
}

/** Groups and latent sizes, as given or as the planner chooses them. */
function chooseSizes({ spec: model }: Checkpoint, options: ConvertOptions): Sizes {
  const { latentSize, targetRatio, groupSize, groups } = options;
  if ((latentSize === undefined) === (targetRatio === undefined)) {
    throw new MolaeError('INVALID_ARGUMENT', 'Give either latentSize or targetRatio');
  }
  if (latentSize !== undefined && (groups !== undefined || groupSize !== undefined)) {
    const resolved = resolveGroups({ groups, groupSize }, model.numExperts);
    return { groups: resolved, spec: checkSpec({ ...options, latentSize }, model, resolved) };
  }
  if (groups !== undefined) {
    throw new MolaeError(
      'INVALID_ARGUMENT',
      'Explicit groups need a latentSize: the planner works with equal groups',
    );
  }
  if (typeof latentSize === 'object') {
    throw new MolaeError(
      'INVALID_ARGUMENT',
      'Latent sizes of their own for gate, up and down need a groupSize',
    );
  }
  const plan = planConversion(model, {
    ...(groupSize !== undefined && { groupSize }),
    ...(latentSize !== undefined && { latentSize }),
    ...(targetRatio !== undefined && { targetRatio }),
    ...(options.operators !== undefined && { operators: options.operators }),
    sharedGateUp: options.sharedGateUp ?? false,
  });
  const resolved = resolveGroups({ groupSize: plan.groupSize }, model.numExperts);
  return {
    groups: resolved,
    spec: checkSpec({ ...options, latentSize: plan.latentSize }, model, resolved),
    reason: plan.reason,
  };
}

/** Refuses what transformers could not load. */
function checkPython({ config }: Checkpoint, format: 'latent' | 'dense'): void {
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

/** Copied tensors go through memory in pieces of this size. */
const COPY_BYTES = 16 * 1024 ** 2;

class Conversion {
  readonly #checkpoint: Checkpoint;
  readonly #output: string;
  readonly #device: Device;
  readonly #options: ConvertOptions;
  readonly #sizes: Sizes;
  readonly #format: 'latent' | 'dense';
  readonly #shards: readonly OutputShard[];
  readonly #buffers: ReadBuffers;
  readonly #sink: FactorSink;
  #done = 0;

  constructor(checkpoint: Checkpoint, output: string, device: Device, options: ConvertOptions) {
    const { format = 'latent' } = options;
    if (format !== 'latent' && format !== 'dense') throw expected('latent or dense', 'format', format);
    if (options.withPython) checkPython(checkpoint, format);
    this.#checkpoint = checkpoint;
    this.#output = output;
    this.#device = device;
    this.#options = options;
    this.#format = format;
    this.#sizes = chooseSizes(checkpoint, options);
    this.#shards = layOutShards(checkpoint, { ...this.#sizes, format });
    this.#buffers = new ReadBuffers(checkpoint);
    this.#sink =
      format === 'dense'
        ? new DenseSink(checkpoint, this.#sizes.groups)
        : new LatentSink(checkpoint, this.#sizes.spec.sharedGateUp);
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
    const { path, shards, config } = this.#checkpoint;
    const files = await Promise.all(
      shards.files.map(async (name) => {
        const { size, mtimeMs } = await stat(join(path, name));
        return [name, size, mtimeMs];
      }),
    );
    const { groups, spec } = this.#sizes;
    return {
      version: LATENT_FORMAT_VERSION,
      device: this.#device.info.kind,
      format: this.#format,
      groups,
      spec,
      config,
      files,
    };
  }

  async #makeShards(folder: OutputFolder): Promise<{ layers: LayerReport[]; resumedFiles: number }> {
    const layers: LayerReport[] = [];
    let resumedFiles = 0;
    for (const [index, shard] of this.#shards.entries()) {
      throwIfAborted(this.#options.signal);
      const file = shardFileName(index, this.#shards.length);
      const finished = await folder.finished(file);
      if (Array.isArray(finished)) {
        layers.push(...(finished as LayerReport[]));
        this.#done += shard.kind === 'layer' ? this.#stepsPerLayer() : 0;
        resumedFiles++;
        continue;
      }
      const report = await this.#makeShard(join(folder.partial, file), shard);
      await folder.finish(file, report);
      layers.push(...report);
    }
    return { layers, resumedFiles };
  }

  async #makeShard(path: string, shard: OutputShard): Promise<LayerReport[]> {
    await using writer = await SafetensorsWriter.create(path, shard.tensors);
    const report =
      shard.kind === 'copy'
        ? await this.#copy(writer, shard.tensors)
        : await this.#convertLayer(writer, shard.layer);
    await writer.finish();
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

  async #convertLayer(writer: SafetensorsWriter, layer: number): Promise<LayerReport[]> {
    const reports: LayerReport[] = [];
    for (const group of this.#sizes.groups.keys()) {
      reports.push(...(await this.#convertGroup(writer, layer, group)));
    }
    return reports;
  }

  async #convertGroup(writer: SafetensorsWriter, layer: number, group: number): Promise<LayerReport[]> {
    const { spec, groups } = this.#sizes;
    const { hiddenSize, intermediateSize } = this.#checkpoint.spec;
    const members = groups[group] as readonly number[];
    const order = loadOrder(spec, members.length);
    const reader = new ExpertReader(this.#checkpoint, this.#device, this.#buffers, { layer, members, order });
    let at: readonly [Operator, number] = ['gate', 0];
    const source = {
      device: this.#device,
      group,
      groupSize: members.length,
      hiddenSize,
      intermediateSize,
      dtype: (operator: Operator) => tensorDType(this.#checkpoint.layer(layer).dtypes[operator]),
      load: (operator: Operator, index: number) => {
        at = [operator, index];
        return reader.load(operator, index);
      },
      release: (tensor: { dispose(): void }) => tensor.dispose(),
      step: () => this.#step(layer, at[0], group),
      signal: this.#options.signal,
    };
    const reports: LayerReport[] = [];
    try {
      for await (const factors of factorizeGroup(source, spec)) {
        try {
          for (const [operator, each] of factors) {
            await this.#sink.write(writer, layer, group, operator, each);
            reports.push({ layer, ...each.report });
          }
        } finally {
          for (const [, { a, b }] of factors) {
            a.dispose();
            b.dispose();
          }
        }
      }
    } catch (error) {
      if (!(error instanceof NonFiniteExpertError)) throw error;
      const { name } = locateExpert(
        this.#checkpoint.family,
        this.#checkpoint.spec,
        layer,
        members[error.index] as number,
        error.operator,
      );
      throw new MolaeError('NON_FINITE', `Tensor ${name} has NaN or infinity at ${error.position}`, {
        cause: error,
      });
    } finally {
      await reader.close();
    }
    return reports;
  }

  async #writeSideFiles(folder: OutputFolder): Promise<void> {
    const { config, path } = this.#checkpoint;
    const count = this.#shards.length;
    await copySideFiles(path, folder.partial);
    const latent = buildLatentConfig(config, this.#molaeBlock());
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

  #molaeBlock() {
    const { groups, spec } = this.#sizes;
    return {
      version: LATENT_FORMAT_VERSION,
      method: 'stacked-svd',
      operators: spec.operators,
      groups: new Map(this.#checkpoint.spec.layers.map((layer) => [layer, groups])),
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
    const { path, expertParameters: before, parameters, byteLength } = this.#checkpoint;
    const { groups, spec, reason } = this.#sizes;
    const after = this.#latentExpertParameters();
    return {
      input: path,
      output: folder.path,
      method: 'stacked-svd',
      format: this.#format,
      groupSize: Math.max(...groups.map((group) => group.length)),
      latentSizes: Object.fromEntries(
        spec.operators.map((operator) => [operator, spec.latentSizes[operator]]),
      ),
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
    const latent = layOutShards(this.#checkpoint, { ...this.#sizes, format: 'latent' });
    const factors = latent.flatMap((shard) => (shard.kind === 'layer' ? shard.tensors : []));
    const replaced = replacedTensors(this.#checkpoint, this.#sizes.spec.operators);
    const kept = [...expertTensors].filter((name) => !replaced.has(name));
    return countParameters(factors) + countParameters(kept.map((name) => shards.tensor(name)));
  }

  /** Elements of the scales that go with converted experts. */
  #countScales(): number {
    const { shards, expertScales } = this.#checkpoint;
    const replaced = replacedTensors(this.#checkpoint, this.#sizes.spec.operators);
    const gone = [...expertScales].filter((name) => replaced.has(name));
    return countParameters(gone.map((name) => shards.tensor(name)));
  }

  #step(layer: number, operator: Operator, group: number): void {
    this.#done++;
    const total = this.#stepsPerLayer() * this.#checkpoint.spec.layers.length;
    this.#options.onProgress?.({ done: this.#done, total, layer, operator, group });
  }

  #stepsPerLayer(): number {
    return 2 * this.#sizes.spec.operators.length * this.#checkpoint.spec.numExperts;
  }
}
