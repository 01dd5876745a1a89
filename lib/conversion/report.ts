import type { Checkpoint } from '../checkpoint/checkpoint.ts';
import { countBytes, countParameters } from '../checkpoint/tally.ts';
import type { BlockDType } from '../dtype.ts';
import type { FactorizationReport } from '../factorization/report.ts';
import type { Operator } from '../operators.ts';
import type { FactorShapes, LayerMethod } from './layer-method.ts';
import { layOutShards, type OutputShard, replacedTensors } from './layout.ts';
import type { OutputFormat } from './options.ts';

/** Before and after. */
export interface Change {
  readonly before: number;
  readonly after: number;
}

/** How well the factors of one operator of one group of one layer stand for the experts. */
export interface LayerReport extends FactorizationReport {
  /** The decoder layer's index. */
  readonly layer: number;
}

/**
 * What a conversion did. `{ before, after }` compares the source with the output; errors are those of each operator of
 * each group, in `layers`.
 */
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

/** What a conversion has done, for its report. */
interface Outcome {
  readonly output: string;
  readonly format: OutputFormat;
  readonly shards: readonly OutputShard[];
  readonly layers: readonly LayerReport[];
  readonly resumedFiles: number;
  readonly seconds: number;
}

export function conversionReport(
  checkpoint: Checkpoint,
  { name: method, reason, shapes }: LayerMethod,
  { output, format, shards, layers, resumedFiles, seconds }: Outcome,
): ConversionReport {
  const { path, expertParameters: before, parameters, byteLength, spec } = checkpoint;
  const after = latentExpertParameters(checkpoint, shapes);
  const scales = replacedScales(checkpoint, shapes);
  return {
    input: path,
    output,
    method,
    format,
    ...(shapes.quantization !== undefined && { quantization: shapes.quantization }),
    groupSize: Math.max(...spec.layers.flatMap((layer) => shapes.groups(layer).map(({ length }) => length))),
    latentSizes: meanLatentSizes(shapes, spec.layers),
    ...(reason !== undefined && { reason }),
    expertParameters: { before, after },
    parameters: { before: parameters, after: parameters - scales - before + after },
    bytes: { before: byteLength, after: countBytes(shards.flatMap(({ tensors }) => tensors)) },
    seconds,
    peakBytes: process.resourceUsage().maxRSS * 1024,
    resumedFiles,
    layers,
  };
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

/** Elements of the routed experts in latent form, whichever format is written. */
function latentExpertParameters(checkpoint: Checkpoint, shapes: FactorShapes): number {
  const { shards, expertTensors } = checkpoint;
  const unquantized = { ...shapes, quantization: undefined };
  const latent = layOutShards(checkpoint, { shapes: unquantized, format: 'latent' });
  const factors = latent.flatMap((shard) => (shard.kind === 'layer' ? shard.tensors : []));
  const replaced = replacedTensors(checkpoint, shapes.operators);
  const kept = [...expertTensors].filter((name) => !replaced.has(name));
  return countParameters(factors) + countParameters(kept.map((name) => shards.tensor(name)));
}

/** Elements of the scales that go with converted experts. */
function replacedScales(checkpoint: Checkpoint, { operators }: FactorShapes): number {
  const { shards, expertScales } = checkpoint;
  const replaced = replacedTensors(checkpoint, operators);
  const gone = [...expertScales].filter((name) => replaced.has(name));
  return countParameters(gone.map((name) => shards.tensor(name)));
}
