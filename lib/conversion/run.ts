import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { Checkpoint } from '../checkpoint/checkpoint.ts';
import type { JsonObject } from '../checkpoint/json.ts';
import { LATENT_FORMAT_VERSION } from '../checkpoint/latent-format.ts';
import { SafetensorsWriter, type TensorDeclaration } from '../checkpoint/safetensors/writer.ts';
import { countBytes } from '../checkpoint/tally.ts';
import { MolaeError, throwIfAborted } from '../errors.ts';
import type { Operator } from '../operators.ts';
import { copyTensors } from './copy-tensors.ts';
import { spaceShortage } from './free-space.ts';
import type { GroupFactors, LayerMethod, LayerWriter } from './layer-method.ts';
import { layOutShards, type OutputShard, shardFileName } from './layout.ts';
import { checkedFormat, type OutputFormat, type OutputOptions } from './options.ts';
import { expandedConfig, latentConfig } from './output-config.ts';
import { OutputFolder } from './output-folder.ts';
import { copyPythonFiles, withAutoMap } from './python-files.ts';
import { type ConversionReport, conversionReport, type LayerReport } from './report.ts';
import { copySideFiles, writeConfig, writeIndex } from './side-files.ts';
import { denseSink, type FactorSink, latentSink } from './sinks.ts';

/** What another run may not meet any more; an output that came while this one worked can be moved away. */
const RESUMABLE: readonly string[] = ['ABORTED', 'IO', 'OUTPUT_EXISTS'];

/** @internal Converts with the factors that a method makes. */
export function runConversion(
  checkpoint: Checkpoint,
  output: string,
  options: OutputOptions,
  method: LayerMethod,
): Promise<ConversionReport> {
  return new Conversion(checkpoint, output, options, method).run();
}

/** Makes the files of the output, one after the other, so that a stopped run has some of them whole. */
class Conversion {
  readonly #checkpoint: Checkpoint;
  readonly #output: string;
  readonly #options: OutputOptions;
  readonly #method: LayerMethod;
  readonly #format: OutputFormat;
  readonly #shards: readonly OutputShard[];
  readonly #sink: FactorSink;
  #done = 0;

  constructor(checkpoint: Checkpoint, output: string, options: OutputOptions, method: LayerMethod) {
    const format = checkedFormat(checkpoint, options);
    this.#checkpoint = checkpoint;
    this.#output = output;
    this.#options = options;
    this.#method = method;
    this.#format = format;
    this.#shards = layOutShards(checkpoint, { shapes: method.shapes, format });
    this.#sink =
      format === 'dense'
        ? denseSink(checkpoint, method.shapes.groups)
        : latentSink(checkpoint, method.shapes.sharedGateUp);
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
      return conversionReport(this.#checkpoint, this.#method, {
        output: folder.path,
        format: this.#format,
        shards: this.#shards,
        layers,
        resumedFiles,
        seconds: (performance.now() - started) / 1000,
      });
    } catch (error) {
      // What was finished stays for the next run where that can succeed.
      const isResumable = error instanceof MolaeError && RESUMABLE.includes(error.code);
      if (!isResumable) await folder.discard();
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
    await this.#checkSpace(
      folder,
      open.map(({ shard }) => shard),
    );
    for (const { shard, name } of open) {
      if (shard.kind !== 'copy') continue;
      throwIfAborted(this.#options.signal);
      await this.#makeFile(folder, name, shard.tensors, async (writer) => {
        await copyTensors(this.#checkpoint, writer, shard.tensors, this.#options.signal);
        return [];
      });
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

  async #checkSpace(folder: OutputFolder, shards: readonly OutputShard[]): Promise<void> {
    const { onSpaceShortage } = this.#options;
    if (!onSpaceShortage) return;
    const shortage = await spaceShortage(
      folder.partial,
      countBytes(shards.flatMap(({ tensors }) => tensors)),
    );
    if (shortage) onSpaceShortage(shortage);
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

  async #writeLayer(
    writer: SafetensorsWriter,
    layer: number,
    groups: AsyncIterable<GroupFactors>,
  ): Promise<LayerReport[]> {
    const reports: LayerReport[] = [];
    for await (const { group, factors } of groups) {
      for (const [operator, each] of factors) {
        await this.#sink(writer, layer, group, operator, each);
        reports.push({ layer, ...each.report });
      }
    }
    return reports;
  }

  async #writeSideFiles(folder: OutputFolder): Promise<void> {
    const { path } = this.#checkpoint;
    const count = this.#shards.length;
    await folder.removeUnrecorded();
    await copySideFiles(path, folder.partial);
    if (this.#options.withPython) await copyPythonFiles(folder.partial);
    await writeConfig(path, folder.partial, this.#config());
    if (count === 1) return;
    const weightMap = new Map(
      this.#shards.flatMap((shard, index) =>
        shard.tensors.map(({ name }) => [name, shardFileName(index, count)] as const),
      ),
    );
    const tensors = this.#shards.flatMap((shard) => shard.tensors);
    await writeIndex(folder.partial, weightMap, countBytes(tensors));
  }

  #config(): JsonObject {
    if (this.#format === 'dense') return expandedConfig(this.#checkpoint);
    const config = latentConfig(this.#checkpoint, this.#method);
    return this.#options.withPython ? withAutoMap(config) : config;
  }

  #step(at: { layer: number; operator: Operator; group: number }): void {
    this.#done++;
    const total = this.#method.stepsPerLayer * this.#checkpoint.spec.layers.length;
    this.#options.onProgress?.({ done: this.#done, total, ...at });
  }
}
