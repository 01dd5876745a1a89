import type { Device } from './device.ts';
import {
  byteCount,
  checkDType,
  type DType,
  holderName,
  holds,
  isBlockDType,
  itemCount,
  newTypedArray,
  type TypedArrayOf,
} from './dtype.ts';
import { expected, MolaeError, shapeText } from './errors.ts';
import { awaitNative, callNative, type NativeTensor } from './native.ts';

/** Sizes of a tensor, outermost first, at most 8; elements are stored row-major. */
export type Shape = readonly number[];

const MOST_DIMENSIONS = 8;

/**
 * A dense, row-major tensor in the memory of a device.
 *
 * `dispose()` gives the memory back as soon as nothing in flight uses it; without it the garbage collector does,
 * later. Views share the memory of the tensor they were made from, and keep it alive.
 */
export class Tensor<D extends DType = DType> {
  readonly device: Device;
  readonly dtype: D;
  readonly shape: Shape;
  #native: NativeTensor | undefined;

  /** @internal Tensors are made by `device.tensor` and `device.empty`. */
  constructor(device: Device, dtype: D, shape: Shape, handle: NativeTensor) {
    this.device = device;
    this.dtype = dtype;
    this.shape = Object.freeze([...shape]);
    this.#native = handle;
  }

  /** @internal Whether `value` is a tensor, and no proxy of one. */
  static is(value: unknown): value is Tensor {
    return typeof value === 'object' && value !== null && #native in value;
  }

  /** Number of elements. */
  get length(): number {
    return this.shape.reduce((product, size) => product * size, 1);
  }

  /** Size in bytes. */
  get byteLength(): number {
    return byteCount(this.dtype, this.shape);
  }

  /** True after `dispose()`. */
  get disposed(): boolean {
    return this.#native === undefined;
  }

  /** @internal */
  get native(): NativeTensor {
    if (!this.#native)
      throw new MolaeError(
        'DISPOSED',
        `This ${this.dtype} tensor of shape ${shapeText(this.shape)} was disposed`,
      );
    return this.#native;
  }

  /**
   * The elements, once everything queued before is done: a Float32Array for f32, Float64Array for f64, Int32Array for
   * i32, the raw bits in a Uint16Array for f16 and bf16, and the bytes of the blocks in a Uint8Array for q8 and q4.
   *
   * @param target filled and returned instead of a new array; `INVALID_ARGUMENT` unless type and length fit.
   */
  async read(target?: TypedArrayOf[D]): Promise<TypedArrayOf[D]> {
    const array = this.#target(target);
    await awaitNative(() => this.native.read(array as NodeJS.TypedArray));
    return array;
  }

  /** Like `read`, blocking this thread until everything queued before is done. */
  readSync(target?: TypedArrayOf[D]): TypedArrayOf[D] {
    const array = this.#target(target);
    callNative(() => this.native.readSync(array as NodeJS.TypedArray));
    return array;
  }

  /** Overwrites the elements, after everything queued before. The source is copied before this returns. */
  async write(source: TypedArrayOf[D]): Promise<void> {
    checkData(this.dtype, this.shape, source, 'source');
    await awaitNative(() => this.native.write(source as NodeJS.TypedArray));
  }

  /**
   * A copy in another dtype: floats rounded to nearest even, or to the nearest blocks of q8 and q4.
   *
   * @throws MolaeError `NON_FINITE` with the place of a NaN or infinity, which no block holds; `INVALID_ARGUMENT` for
   *   weights beyond what an f16 scale can give blocks.
   */
  async to<To extends DType>(dtype: To): Promise<Tensor<To>> {
    checkDType(dtype, 'dtype');
    const { device, shape, native } = this;
    return withResults(device, async (make) => {
      const copy = make(dtype, shape);
      await awaitNative(() => device.native.copy(native, copy.native));
      return copy;
    });
  }

  /** The values as numbers in a Float32Array, whatever the dtype (but i32). */
  async toFloat32(): Promise<Float32Array> {
    if (this.dtype === 'f32') return (await this.read()) as Float32Array;
    const wide = await this.to('f32');
    try {
      return await wide.read();
    } finally {
      wide.dispose();
    }
  }

  /** The view [b, …] at `index` of a tensor [a, b, …]. */
  slice(index: number): Tensor<D> {
    const view = callNative(() => this.native.slice(index));
    return this.#view(this.shape.slice(1), view);
  }

  /** The view [end − begin, …] of the rows from `begin` up to, not including, `end`. */
  rows(begin: number, end: number): Tensor<D> {
    const view = callNative(() => this.native.rowRange(begin, end));
    return this.#view([end - begin, ...this.shape.slice(1)], view);
  }

  /** The same elements under another shape. */
  reshape(shape: Shape): Tensor<D> {
    const sizes = checkedShape(shape, 'shape');
    return this.#view(
      sizes,
      callNative(() => this.native.reshape(sizes)),
    );
  }

  /** Gives the memory back; a second call does nothing. */
  dispose(): void {
    this.#native?.dispose();
    this.#native = undefined;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #view(shape: Shape, view: NativeTensor): Tensor<D> {
    return new Tensor(this.device, this.dtype, shape, view);
  }

  #target(target: TypedArrayOf[D] | undefined): TypedArrayOf[D] {
    if (target === undefined) return newTypedArray(this.dtype, this.shape);
    checkData(this.dtype, this.shape, target, 'target');
    return target;
  }
}

/**
 * What an operation gives: `out` where it was given, otherwise a new tensor of dtype D. An `out` that may be undefined gives
 * either; without TypeScript's `exactOptionalPropertyTypes` it counts as given.
 */
export type ResultTensor<D extends DType, Out extends Tensor | undefined> = Out extends Tensor
  ? Out
  : Tensor<D>;

/** @internal Throws unless `data` is a typed array that fits the dtype. */
export function checkHolder(dtype: DType, data: unknown, name: string): asserts data is NodeJS.TypedArray {
  if (!holds(dtype, data)) throw expected(`${holderName(dtype)} (${dtype})`, name, data);
}

/** @internal Throws unless `data` is a typed array that fits dtype and shape. */
export function checkData(
  dtype: DType,
  shape: Shape,
  data: unknown,
  name: string,
): asserts data is NodeJS.TypedArray {
  checkHolder(dtype, data, name);
  const wanted = itemCount(dtype, shape);
  if (data.length !== wanted) {
    throw new MolaeError(
      'SHAPE_MISMATCH',
      `Expected ${wanted} ${isBlockDType(dtype) ? 'bytes of blocks' : 'elements'} for ${name} of shape ${shapeText(shape)} but received ${data.length}`,
    );
  }
}

/** @internal Throws unless `value` is a tensor. */
export function checkTensor(value: unknown, name: string): asserts value is Tensor {
  if (!Tensor.is(value)) throw expected('a Tensor', name, value);
}

/** @internal A copy of `value`, which the caller may change meanwhile. Throws unless it is a shape. */
export function checkedShape(value: unknown, name: string): Shape {
  if (!Array.isArray(value) || !(value.length <= MOST_DIMENSIONS)) {
    throw expected(`an array of the sizes of at most ${MOST_DIMENSIONS} dimensions`, name, value);
  }
  const sizes: unknown[] = Array.from(value);
  if (!sizes.every((size) => Number.isSafeInteger(size) && (size as number) >= 0)) {
    throw expected('an array of non-negative integers', name, value);
  }
  return sizes as number[];
}

/**
 * @internal Results of an operation, made by `make` in `fill`: the caller's when it is done, and gone when it fails,
 * without waiting for the garbage collector.
 */
export async function withResults<Result>(
  device: Device,
  fill: (make: <D extends DType>(dtype: D, shape: Shape) => Tensor<D>) => Promise<Result>,
): Promise<Result> {
  const made: Tensor[] = [];
  try {
    return await fill((dtype, shape) => {
      const tensor = device.empty(dtype, shape);
      made.push(tensor);
      return tensor;
    });
  } catch (error) {
    for (const tensor of made) tensor.dispose();
    throw error;
  }
}
