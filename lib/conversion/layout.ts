import type { Checkpoint } from '../checkpoint/checkpoint.ts';
import { locateExpert } from '../checkpoint/family.ts';
import {
  type LatentFactor,
  latentFactorShapes,
  latentTensorName,
  storedFactorShape,
} from '../checkpoint/latent-format.ts';
import { storedDtype } from '../checkpoint/safetensors/dtype.ts';
import type { TensorDeclaration } from '../checkpoint/safetensors/writer.ts';
import { MolaeError } from '../errors.ts';
import { OPERATORS, type Operator } from '../operators.ts';
import type { FactorShapes } from './layer-method.ts';

/** A file of the converted checkpoint: the unit that a stopped run keeps or makes again. */
export type OutputShard =
  /** Tensors that stay as they are. */
  | { readonly kind: 'copy'; readonly tensors: readonly TensorDeclaration[] }
  /** The converted operators of one MoE layer. */
  | { readonly kind: 'layer'; readonly layer: number; readonly tensors: readonly TensorDeclaration[] };

interface LayoutOptions {
  readonly shapes: FactorShapes;
  /** `dense` writes A·B back under the original names, and everything that is quantized expanded. */
  readonly format: 'latent' | 'dense';
}

/** Copied tensors are collected in files of up to this size. */
const MAX_COPY_BYTES = 4 * 1024 ** 3;

/** The files of the converted checkpoint, in the order in which they are made. */
export function layOutShards(checkpoint: Checkpoint, options: LayoutOptions): OutputShard[] {
  const replaced = replacedTensors(checkpoint, options.shapes.operators);
  return [
    ...copyShards(checkpoint, replaced, options.format),
    ...checkpoint.spec.layers.map((layer) => ({
      kind: 'layer' as const,
      layer,
      tensors:
        options.format === 'dense'
          ? denseTensors(checkpoint, layer, options.shapes)
          : latentTensors(checkpoint, layer, options.shapes),
    })),
  ];
}

/** The names that the files of a checkpoint have in Hugging Face's layout. */
export function shardFileName(index: number, count: number): string {
  const pad = (value: number) => String(value).padStart(5, '0');
  return count === 1 ? 'model.safetensors' : `model-${pad(index + 1)}-of-${pad(count)}.safetensors`;
}

/** The source tensors that hold converted operators, and nothing else, with their scales. */
export function replacedTensors(checkpoint: Checkpoint, operators: readonly Operator[]): Set<string> {
  const { family, spec } = checkpoint;
  const holders = (chosen: readonly Operator[]) =>
    new Set(
      spec.layers.flatMap((layer) =>
        Array.from({ length: spec.numExperts }, (_, expert) => expert).flatMap((expert) =>
          chosen.map((operator) => locateExpert(family, spec, layer, expert, operator).name),
        ),
      ),
    );
  const replaced = holders(operators);
  for (const name of holders(OPERATORS.filter((operator) => !operators.includes(operator)))) {
    if (replaced.has(name)) {
      throw new MolaeError(
        'UNSUPPORTED_CHECKPOINT',
        `Tensor ${name} holds several operators in one: convert them together (operators ${operators.join(', ')} were asked for)`,
      );
    }
  }
  const scales = [...replaced].flatMap((name) => checkpoint.weights.scalesOf(name) ?? []);
  return new Set([...replaced, ...scales]);
}

function copyShards(
  checkpoint: Checkpoint,
  replaced: ReadonlySet<string>,
  format: LayoutOptions['format'],
): OutputShard[] {
  const { shards: source, weights } = checkpoint;
  const names = [...source.tensors.keys()].filter((name) => !replaced.has(name));
  // No loader expects an expanded tensor to have scales, and none reads the rest without them.
  const expanded = new Map(format === 'dense' ? names.map((name) => [name, weights.scalesOf(name)]) : []);
  const scales = new Set(expanded.values());
  const shards: OutputShard[] = [];
  let tensors: TensorDeclaration[] = [];
  let bytes = 0;
  const flush = () => {
    if (tensors.length > 0) shards.push({ kind: 'copy', tensors });
    tensors = [];
    bytes = 0;
  };
  for (const name of names) {
    if (scales.has(name)) continue;
    const { shape, dtype: stored } = source.tensor(name);
    const isExpanded = expanded.get(name) !== undefined;
    const dtype = isExpanded ? storedDtype(weights.dtype(name)) : stored;
    const byteLength = isExpanded ? weights.byteLength(name) : source.tensor(name).byteLength;
    if (bytes + byteLength > MAX_COPY_BYTES) flush();
    tensors.push({ name, dtype, shape });
    bytes += byteLength;
  }
  flush();
  return shards;
}

function denseTensors(
  checkpoint: Checkpoint,
  layer: number,
  { operators }: FactorShapes,
): TensorDeclaration[] {
  const { family, spec: sizes, shards, weights } = checkpoint;
  const names = new Set(
    operators.flatMap((operator) =>
      Array.from(
        { length: sizes.numExperts },
        (_, expert) => locateExpert(family, sizes, layer, expert, operator).name,
      ),
    ),
  );
  return [...names].map((name) => {
    return { name, dtype: storedDtype(weights.dtype(name)), shape: shards.tensor(name).shape };
  });
}

function latentTensors(
  checkpoint: Checkpoint,
  layer: number,
  { groups, operators, sharedGateUp, quantization, latentSize }: FactorShapes,
): TensorDeclaration[] {
  const { hiddenSize, intermediateSize } = checkpoint.spec;
  const sourceDtype = (factor: LatentFactor) =>
    checkpoint.expertDtype(
      layer,
      factor.startsWith('down') ? 'down' : factor.startsWith('up') ? 'up' : 'gate',
    );
  const prefix = checkpoint.family.expertsPrefix(layer);
  return groups(layer).flatMap((group, g) => {
    const sizes = {
      hiddenSize,
      intermediateSize,
      groupSize: group.length,
      latentSizes: Object.fromEntries(
        operators.map((operator) => [operator, latentSize(layer, operator, g)]),
      ),
      sharedGateUp,
    };
    return [...latentFactorShapes(sizes)].map(([factor, shape]) => ({
      name: latentTensorName(prefix, g, factor),
      dtype: quantization === undefined ? storedDtype(sourceDtype(factor)) : ('U8' as const),
      shape: storedFactorShape(shape, quantization),
    }));
  });
}
