import type { Operator } from '../../experts.ts';
import type { OperatorFactors } from '../../factorize.ts';
import { gemm } from '../../linalg.ts';
import type { Tensor } from '../../tensor.ts';
import type { Checkpoint } from '../checkpoint.ts';
import { locateExpert } from '../family.ts';
import { expertFactor, latentTensorName, sharedFactor } from '../latent-format.ts';
import { DTYPE_BYTES } from '../safetensors/dtype.ts';
import type { SafetensorsWriter } from '../safetensors/writer.ts';
import { tensorBytesInto, type WeightDType } from '../tensors.ts';

/** Where the factors of a group go: one implementation for each output format. */
export interface FactorSink {
  write(
    writer: SafetensorsWriter,
    layer: number,
    group: number,
    operator: Operator,
    factors: OperatorFactors,
  ): Promise<void>;
}

/** Stores the factors: the format of a converted checkpoint. */
export class LatentSink implements FactorSink {
  readonly #checkpoint: Checkpoint;
  readonly #sharedGateUp: boolean;

  constructor(checkpoint: Checkpoint, sharedGateUp: boolean) {
    this.#checkpoint = checkpoint;
    this.#sharedGateUp = sharedGateUp;
  }

  async write(
    writer: SafetensorsWriter,
    layer: number,
    group: number,
    operator: Operator,
    { a, b }: OperatorFactors,
  ): Promise<void> {
    const prefix = this.#checkpoint.family.expertsPrefix(layer);
    await writeTensor(writer, latentTensorName(prefix, group, expertFactor(operator)), a);
    if (this.#sharedGateUp && operator === 'up') return; // the B of gate
    await writeTensor(writer, latentTensorName(prefix, group, sharedFactor(operator, this.#sharedGateUp)), b);
  }
}

/** Multiplies the factors out and stores A·B where the source has W: any engine can load and judge that. */
export class DenseSink implements FactorSink {
  readonly #checkpoint: Checkpoint;
  readonly #groups: readonly (readonly number[])[];

  constructor(checkpoint: Checkpoint, groups: readonly (readonly number[])[]) {
    this.#checkpoint = checkpoint;
    this.#groups = groups;
  }

  async write(
    writer: SafetensorsWriter,
    layer: number,
    group: number,
    operator: Operator,
    { a, b }: OperatorFactors,
  ): Promise<void> {
    const { family, spec } = this.#checkpoint;
    const itemBytes = DTYPE_BYTES[this.#checkpoint.layer(layer).dtypes[operator]];
    for (const [index, expert] of (this.#groups[group] ?? []).entries()) {
      using own = a.slice(index);
      using product = operator === 'down' ? await gemm(b, own) : await gemm(own, b);
      const { name, elementOffset } = locateExpert(family, spec, layer, expert, operator);
      await writeTensor(writer, name, product, elementOffset * itemBytes);
    }
  }
}

/** A tensor is read off the device and written in pieces of this size. */
const PIECE_BYTES = 64 * 1024 ** 2;

async function writeTensor(
  writer: SafetensorsWriter,
  name: string,
  tensor: Tensor,
  byteOffset = 0,
): Promise<void> {
  const rows = tensor.shape[0] as number;
  const rowBytes = tensor.byteLength / Math.max(rows, 1);
  const step = Math.max(1, Math.floor(PIECE_BYTES / rowBytes));
  const buffer = new ArrayBuffer(Math.min(rows, step) * rowBytes);
  for (let begin = 0; begin < rows; begin += step) {
    using piece = tensor.rows(begin, Math.min(rows, begin + step));
    const bytes = await tensorBytesInto(piece as Tensor<WeightDType>, buffer);
    await writer.write(name, bytes, byteOffset + begin * rowBytes);
  }
}
