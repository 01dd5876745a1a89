import { checkDType, type DType, type TypedArrayOf } from './dtype.ts';
import { checkObject, expected, MolaeError } from './errors.ts';
import { awaitNative, callNative, type NativeDevice, native } from './native.ts';
import { checkData, checkedShape, checkHolder, type Shape, Tensor } from './tensor.ts';

/** What a device is. */
export interface DeviceInfo {
  readonly kind: 'cpu' | 'cuda';
  /** Which of its kind; 0 for the CPU. */
  readonly index: number;
  /** Of the processor or the GPU. */
  readonly name: string;
  /** The BLAS that does the matrix products, with its version. */
  readonly library: string;
  /** Instruction sets, or the compute capability. */
  readonly features: readonly string[];
  /** Those that it computes with; 0 for a GPU. */
  readonly threads: number;
  /** All of its memory. */
  readonly memoryBytes: number;
}

/** The memory that a device uses, in bytes. */
export interface MemoryUsage {
  /** Of live tensors. */
  readonly tensors: number;
  /** Kept for reuse between calls. */
  readonly workspaces: number;
  /** The largest sum of both so far. */
  readonly peak: number;
}

/** How `openDevice` opens a device. */
export interface DeviceOptions {
  /** How many threads the CPU device may use; 0, the default: every processor that this process may run on. */
  readonly threads?: number | undefined;
}

/**
 * A place where tensors live and work runs: calls are queued on the device's own thread and run in the order they
 * were made, one at a time.
 */
export class Device {
  #native: NativeDevice | undefined;
  readonly info: DeviceInfo;

  /** @internal Use `openDevice`. */
  constructor(handle: NativeDevice) {
    this.#native = handle;
    this.info = handle.info();
  }

  get kind(): DeviceInfo['kind'] {
    return this.info.kind;
  }

  /** @internal */
  get native(): NativeDevice {
    if (!this.#native) throw new MolaeError('DISPOSED', `The ${this.info.kind} device was disposed`);
    return this.#native;
  }

  /**
   * A tensor with a copy of `data`, taken before this returns.
   *
   * @param shape by default [data.length]
   */
  tensor<D extends DType>(dtype: D, data: TypedArrayOf[D], shape?: Shape): Tensor<D> {
    checkDType(dtype, 'dtype');
    checkHolder(dtype, data, 'data');
    const sizes = checkedShape(shape ?? [data.length], 'shape');
    checkData(dtype, sizes, data, 'data');
    return new Tensor(
      this,
      dtype,
      sizes,
      callNative(() => this.native.fromData(dtype, sizes, data)),
    );
  }

  /** A tensor with arbitrary contents, to be written by an operation. */
  empty<D extends DType>(dtype: D, shape: Shape): Tensor<D> {
    checkDType(dtype, 'dtype');
    const sizes = checkedShape(shape, 'shape');
    return new Tensor(
      this,
      dtype,
      sizes,
      callNative(() => this.native.empty(dtype, sizes)),
    );
  }

  /** Resolves when everything queued so far is done. */
  async synchronize(): Promise<void> {
    await awaitNative(() => this.native.synchronize());
  }

  /**
   * Milliseconds on the device's own clock (a GPU's: CUDA events), once everything queued before is done. The difference
   * of two tells how long what was queued between them took, without the way from and to JavaScript.
   */
  async timestamp(): Promise<number> {
    return awaitNative(() => this.native.timestamp());
  }

  /** What is in use now, and was at most. */
  memoryUsage(): MemoryUsage {
    return callNative(() => this.native.memoryUsage());
  }

  /**
   * Lets go of the device: operations in flight and `forward` of experts finish, and tensors can still be read, written and
   * disposed. What needs new tensors of it is `DISPOSED` from now on: of MoE blocks and models also what they have begun. The
   * last one to leave frees its workspaces.
   */
  dispose(): void {
    this.#native?.dispose();
    this.#native = undefined;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/**
 * Opens a device: `'cpu'`, `'cuda'` (the first GPU), `'cuda:1'`, or `'auto'`.
 *
 * `'auto'` is what the environment variable `MOLAE_BACKEND` names, and otherwise the CPU for now: the CUDA backend builds and its logic is tested on the host, but it has not been run on a
 * GPU yet, and nobody should get it without having asked.
 *
 * @throws MolaeError `DEVICE_UNAVAILABLE` with the reason; `'cuda'` never falls back to the CPU.
 */
export async function openDevice(name: string = 'auto', options: DeviceOptions = {}): Promise<Device> {
  const { kind, index } = chosenDevice(name);
  checkObject(options, 'options');
  const { threads = 0 } = options;
  checkThreads(threads);
  return new Device(callNative(() => native().openDevice(kind, index, threads)));
}

/** @internal Throws unless that many threads can be asked for. */
export function checkThreads(threads: unknown): asserts threads is number {
  if (!Number.isSafeInteger(threads) || (threads as number) < 0)
    throw expected('a non-negative integer (0: every processor)', 'threads', threads);
}

interface DeviceName {
  readonly kind: 'cpu' | 'cuda';
  readonly index: number;
}

function chosenDevice(name: unknown): DeviceName {
  if (name !== 'auto') return parseDeviceName(name, 'auto, cpu, cuda or cuda:<index>', 'device');
  const wanted = process.env.MOLAE_BACKEND;
  return wanted === undefined || wanted === ''
    ? { kind: 'cpu', index: 0 }
    : parseDeviceName(wanted, 'cpu, cuda or cuda:<index>', 'the environment variable MOLAE_BACKEND');
}

function parseDeviceName(name: unknown, wanted: string, place: string): DeviceName {
  const match = typeof name === 'string' ? /^(cpu|cuda)(?::(\d{1,4}))?$/.exec(name) : null;
  if (!match || (match[2] !== undefined && match[1] !== 'cuda')) throw expected(wanted, place, name);
  return { kind: match[1] as 'cpu' | 'cuda', index: Number(match[2] ?? 0) };
}

/** Throws unless `value` is a device. */
export function checkDevice(value: unknown): asserts value is Device {
  if (!(value instanceof Device)) throw expected('a device of openDevice()', 'device', value);
}
