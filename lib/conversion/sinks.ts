import type { Checkpoint } from '../checkpoint/checkpoint.ts';
import { locateExpert } from '../checkpoint/family.ts';
import { expertFactor, latentTensorName, sharedFactor } from '../checkpoint/latent-format.ts';
import type { SafetensorsWriter } from '../checkpoint/safetensors/writer.ts';
import { tensorBytesInto } from '../checkpoint/tensors.ts';
import { elementBytes, type WeightDType } from '../dtype.ts';
import type { OperatorFactors } from '../factorization/factors.ts';
import { gemm } from '../linalg.ts';
import type { Operator } from '../operators.ts';
import type { Tensor } from '../tensor.ts';
import type { FactorShapes } from './layer-method.ts';

/** Where the factors of a group go: one for each output format. */
export type FactorSink = (
  writer: SafetensorsWriter,
  layer: number,
  group: number,
  operator: Operator,
  factors: OperatorFactors,
) => Promise<void>;

/** Stores the factors: the format of a converted checkpoint. */
export function latentSink({ family }: Checkpoint, sharedGateUp: boolean): FactorSink {
  const transfer = new TensorTransfer();
  return async (writer, layer, group, operator, { a, b }) => {
    const prefix = family.expertsPrefix(layer);
    await transfer.write(writer, latentTensorName(prefix, group, expertFactor(operator)), a);
    if (sharedGateUp && operator === 'up') return; // the B of gate
    await transfer.write(writer, latentTensorName(prefix, group, sharedFactor(operator, sharedGateUp)), b);
  };
}

/** Multiplies the factors out and stores A·B where the source has W: any engine can load and judge that. */
export function denseSink(checkpoint: Checkpoint, groups: FactorShapes['groups']): FactorSink {
  const { family, spec } = checkpoint;
  const transfer = new TensorTransfer();
  return async (writer, layer, group, operator, { a, b }) => {
    const itemBytes = elementBytes(checkpoint.expertDtype(layer, operator));
    for (const [index, expert] of (groups(layer)[group] ?? []).entries()) {
      using own = a.slice(index);
      using product = operator === 'down' ? await gemm(b, own) : await gemm(own, b);
      const { name, elementOffset } = locateExpert(family, spec, layer, expert, operator);
      await transfer.write(writer, name, product, elementOffset * itemBytes);
    }
  };
}

/**
 * Moves tensors from device to disk in pieces, through one buffer: fresh memory for every tensor would wait for the
 * garbage collector, and count against the memory bound meanwhile.
 */
class TensorTransfer {
  #buffer = new ArrayBuffer(8 * 1024 ** 2);

  async write(writer: SafetensorsWriter, name: string, tensor: Tensor, byteOffset = 0): Promise<void> {
    const rowBytes = tensor.byteLength / Math.max(tensor.shape[0] as number, 1);
    if (tensor.shape.length > 2) return this.#writeSlices(writer, name, tensor, byteOffset, rowBytes);
    if (rowBytes > this.#buffer.byteLength) this.#buffer = new ArrayBuffer(rowBytes);
    const rows = tensor.shape[0] as number;
    const step = Math.max(1, Math.floor(this.#buffer.byteLength / Math.max(rowBytes, 1)));
    for (let begin = 0; begin < rows; begin += step) {
      using piece = tensor.rows(begin, Math.min(rows, begin + step));
      const bytes = await tensorBytesInto(piece as Tensor<WeightDType>, this.#buffer);
      await writer.write(name, bytes, byteOffset + begin * rowBytes);
    }
  }

  async #writeSlices(
    writer: SafetensorsWriter,
    name: string,
    tensor: Tensor,
    byteOffset: number,
    sliceBytes: number,
  ): Promise<void> {
    for (let index = 0; index < (tensor.shape[0] as number); index++) {
      using slice = tensor.slice(index);
      await this.write(writer, name, slice, byteOffset + index * sliceBytes);
    }
  }
}
