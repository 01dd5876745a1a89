import type { Device } from '../../device.ts';
import type { Operator } from '../../experts.ts';
import type { Tensor } from '../../tensor.ts';
import type { Checkpoint } from '../checkpoint.ts';
import { operatorShape } from '../family.ts';
import { DTYPE_BYTES } from '../safetensors/dtype.ts';
import { tensorFromBytes } from '../tensors.ts';

/**
 * Reads the experts of a group in a known order, always one ahead, so that disk and arithmetic overlap. Two buffers,
 * whatever the number of experts.
 */
export class ExpertReader {
  readonly #checkpoint: Checkpoint;
  readonly #device: Device;
  readonly #layer: number;
  readonly #members: readonly number[];
  readonly #order: Iterator<readonly [Operator, number]>;
  #buffers: [Uint8Array, Uint8Array];
  #ahead: { operator: Operator; index: number; bytes: Promise<Uint8Array> } | undefined;

  constructor(
    checkpoint: Checkpoint,
    device: Device,
    layer: number,
    members: readonly number[],
    order: Iterator<readonly [Operator, number]>,
  ) {
    const { hiddenSize, intermediateSize } = checkpoint.spec;
    const itemBytes = Math.max(
      ...Object.values(checkpoint.layer(layer).dtypes).map((dtype) => DTYPE_BYTES[dtype]),
    );
    const matrixBytes = hiddenSize * intermediateSize * itemBytes;
    this.#checkpoint = checkpoint;
    this.#device = device;
    this.#layer = layer;
    this.#members = members;
    this.#order = order;
    this.#buffers = [new Uint8Array(matrixBytes), new Uint8Array(matrixBytes)];
    this.#readAhead();
  }

  /** The next matrix of the order, as a tensor that the caller disposes. */
  async load(operator: Operator, index: number): Promise<Tensor> {
    const ahead = this.#ahead;
    if (!ahead || ahead.operator !== operator || ahead.index !== index) {
      throw new Error(`experts are loaded out of order: ${operator} ${index}`);
    }
    const bytes = await ahead.bytes;
    const dtype = this.#checkpoint.layer(this.#layer).dtypes[operator];
    const tensor = tensorFromBytes(
      this.#device,
      dtype,
      bytes,
      operatorShape(this.#checkpoint.spec, operator),
    );
    this.#readAhead();
    return tensor;
  }

  /** Waits for the read that may still be under way: its buffer and file must not outlive the conversion. */
  async close(): Promise<void> {
    await this.#ahead?.bytes.catch(() => {});
    this.#ahead = undefined;
  }

  #readAhead(): void {
    const next = this.#order.next();
    if (next.done) {
      this.#ahead = undefined;
      return;
    }
    const [operator, index] = next.value;
    const [buffer, other] = this.#buffers;
    this.#buffers = [other, buffer];
    const bytes = this.#checkpoint.readExpert(this.#layer, this.#members[index] as number, operator, buffer);
    bytes.catch(() => {}); // reported by load, if it gets that far
    this.#ahead = { operator, index, bytes };
  }
}
