import type { Device } from '../device.ts';
import {
  awaitNative,
  type NativeAttentionSpec,
  type NativeHeadColumns,
  type NativeRotarySpec,
  type NativeSequence,
} from '../native.ts';
import type { Tensor } from '../tensor.ts';

/**
 * Queues the operations of a decoder without waiting for each: the device runs them in order, and `settle` waits for
 * all. Arguments are checked at once; the first failure of any is what `settle` throws.
 */
export class Operations {
  readonly #device: Device;
  #pending: Promise<unknown>[] = [];

  constructor(device: Device) {
    this.#device = device;
  }

  /** Resolves when everything queued is done. */
  async settle(): Promise<void> {
    const pending = this.#pending;
    this.#pending = [];
    await Promise.all(pending);
  }

  /** out [T, n] = the rows of table [V, n] named by ids [T]. */
  gatherRows(table: Tensor, ids: Tensor<'i32'>, out: Tensor): void {
    this.add(() => this.#device.native.gatherRows(table.native, ids.native, out.native));
  }

  /** out [T, m] = x [T, n] · weight[m, n]ᵀ + bias[m] */
  linear(x: Tensor, weight: Tensor, bias: Tensor | undefined, out: Tensor): void {
    this.add(() => this.#device.native.linear(x.native, weight.native, bias?.native, out.native));
  }

  /** out = weight · x / rms(x), over groups of weight's size; out may be x. */
  rmsNorm(x: Tensor, weight: Tensor, eps: number, out: Tensor): void {
    this.add(() => this.#device.native.rmsNorm(x.native, weight.native, eps, out.native));
  }

  /** Rotates the heads of x [T, heads · headSize] in place. */
  rotary(x: Tensor, positions: Tensor<'i32'>, frequencies: Tensor<'f32'>, spec: NativeRotarySpec): void {
    this.add(() => this.#device.native.rotary(x.native, positions.native, frequencies.native, spec));
  }

  /** Causal attention of each sequence to itself. */
  attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    sequences: readonly NativeSequence[],
    spec: NativeAttentionSpec,
    out: Tensor,
  ): void {
    this.add(() =>
      this.#device.native.attention(q.native, keys.native, values.native, sequences, spec, out.native),
    );
  }

  /** Copies columns of the heads of from [T, …] to the heads of to [T, …]. */
  copyHeadColumns(from: Tensor, to: Tensor, columns: NativeHeadColumns): void {
    this.add(() => this.#device.native.copyHeadColumns(from.native, to.native, columns));
  }

  /** to += from */
  accumulate(from: Tensor, to: Tensor): void {
    this.add(() => this.#device.native.add(from.native, to.native));
  }

  /** Adds a call that queues its work before it first awaits. */
  add(call: () => Promise<unknown>): void {
    const promise = awaitNative(call);
    promise.catch(() => {}); // settle reports it
    this.#pending.push(promise);
  }
}
