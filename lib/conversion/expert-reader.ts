import type { Checkpoint } from '../checkpoint/checkpoint.ts';
import { operatorShape } from '../checkpoint/family.ts';
import { tensorFromBytes } from '../checkpoint/tensors.ts';
import type { Device } from '../device.ts';
import { elementBytes } from '../dtype.ts';
import { OPERATORS, type Operator } from '../operators.ts';
import type { Tensor } from '../tensor.ts';

/** Two buffers for matrices of a layer: one is computed with while the other fills. */
export class ReadBuffers {
  #next: Uint8Array;
  #other: Uint8Array;

  constructor(checkpoint: Checkpoint) {
    const { spec, layers } = checkpoint;
    const itemBytes = [...layers.keys()].flatMap((layer) =>
      OPERATORS.map((operator) => elementBytes(checkpoint.expertDtype(layer, operator))),
    );
    const matrixBytes = spec.hiddenSize * spec.intermediateSize * Math.max(...itemBytes);
    this.#next = new Uint8Array(matrixBytes);
    this.#other = new Uint8Array(matrixBytes);
  }

  /** The buffer whose contents are needed no more. */
  take(): Uint8Array {
    [this.#next, this.#other] = [this.#other, this.#next];
    return this.#other;
  }
}

/** Which matrices a reader delivers, in which order. */
interface ReadPlan {
  readonly layer: number;
  /** The experts of the group. */
  readonly members: readonly number[];
  /** Operators and indices into `members`. */
  readonly order: Iterator<readonly [Operator, number]>;
}

/** Reads the experts of a group in a known order, always one ahead, so that disk and arithmetic overlap. */
export class ExpertReader {
  readonly #checkpoint: Checkpoint;
  readonly #device: Device;
  readonly #buffers: ReadBuffers;
  readonly #plan: ReadPlan;
  #ahead: { operator: Operator; index: number; bytes: Promise<Uint8Array> } | undefined;

  constructor(checkpoint: Checkpoint, device: Device, buffers: ReadBuffers, plan: ReadPlan) {
    this.#checkpoint = checkpoint;
    this.#device = device;
    this.#buffers = buffers;
    this.#plan = plan;
    this.#readAhead();
  }

  /** The next matrix of the order, as a tensor that the caller disposes. */
  async load(operator: Operator, index: number): Promise<Tensor> {
    const ahead = this.#ahead;
    if (!ahead || ahead.operator !== operator || ahead.index !== index) {
      throw new Error(`experts are loaded out of order: ${operator} ${index}`);
    }
    const bytes = await ahead.bytes;
    const dtype = this.#checkpoint.expertDtype(this.#plan.layer, operator);
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
    const next = this.#plan.order.next();
    if (next.done) {
      this.#ahead = undefined;
      return;
    }
    const [operator, index] = next.value;
    const { layer, members } = this.#plan;
    const bytes = this.#checkpoint.readExpert(
      layer,
      members[index] as number,
      operator,
      this.#buffers.take(),
    );
    bytes.catch(() => {}); // reported by load, if it gets that far
    this.#ahead = { operator, index, bytes };
  }
}
