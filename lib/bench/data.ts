import type { Device } from '../device.ts';
import type { TypedArrayOf } from '../dtype.ts';
import type { Tensor } from '../tensor.ts';

/** The dtypes that are measured. */
export type BenchDType = 'f32' | 'f64' | 'bf16';

/** Elements of a pool: more than any one cache holds as f32, and prime to every matrix's width. */
export const POOL_LENGTH = 4_194_301;
/** Matrices start this many elements apart in the pool; `peers/ggml-moe.cc` has the same rule. */
export const POOL_STRIDE = 1_000_003;

const pools = new Map<string, Float32Array | Float64Array | Uint16Array>();

/** Uniform in [0, 1), by mulberry32. */
export function uniformSource(seed: number): () => number {
  let state = (seed ^ 0x9e3779b9) >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/**
 * Random normal numbers with the given standard deviation. One pool serves all matrices, each from its own place on, cyclically:
 * a layer has half a billion weights, and making each anew would take longer than the measurement.
 */
export function pool<D extends BenchDType>(dtype: D, scale: number): TypedArrayOf[D] {
  const key = `${dtype} ${scale}`;
  const known = pools.get(key);
  if (known) return known as TypedArrayOf[D];
  const made =
    dtype === 'bf16'
      ? toBf16(scaled(scale))
      : dtype === 'f32'
        ? Float32Array.from(scaled(scale))
        : scaled(scale);
  pools.set(key, made);
  return made as TypedArrayOf[D];
}

let unit: Float64Array | undefined;

function scaled(scale: number): Float64Array {
  unit ??= normals(POOL_LENGTH);
  return unit.map((value) => value * scale);
}

function normals(length: number): Float64Array {
  const uniform = uniformSource(20250323);
  const values = new Float64Array(length + 1);
  for (let i = 0; i < length; i += 2) {
    const radius = Math.sqrt(-2 * Math.log(1 - uniform()));
    const angle = 2 * Math.PI * uniform();
    values[i] = radius * Math.cos(angle);
    values[i + 1] = radius * Math.sin(angle);
  }
  return values.subarray(0, length);
}

const one = new Float32Array(1);
const oneBits = new Uint32Array(one.buffer);

function toBf16(values: Float64Array): Uint16Array {
  return Uint16Array.from(values, (value) => {
    one[0] = value;
    const bits = oneBits[0] as number;
    return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16;
  });
}

/** The elements of the matrix with this seed; the same on every call. */
export function values<D extends BenchDType>(
  dtype: D,
  seed: number,
  length: number,
  scale = 1,
): TypedArrayOf[D] {
  const source = pool(dtype, scale);
  const target = new (source.constructor as new (length: number) => TypedArrayOf[D])(length);
  let from = (seed * POOL_STRIDE) % POOL_LENGTH;
  for (let at = 0; at < length; ) {
    const count = Math.min(length - at, POOL_LENGTH - from);
    (target as Float32Array).set((source as Float32Array).subarray(from, from + count), at);
    at += count;
    from = 0;
  }
  return target;
}

/** The same as numbers that JavaScript computes with, exactly. */
export function exactValues(
  dtype: BenchDType,
  seed: number,
  length: number,
  scale = 1,
): Float32Array | Float64Array {
  if (dtype !== 'bf16') return values(dtype, seed, length, scale);
  const words = new Uint32Array(length);
  const halves = values('bf16', seed, length, scale);
  for (let i = 0; i < length; i++) words[i] = (halves[i] as number) << 16;
  return new Float32Array(words.buffer);
}

export function tensor<D extends BenchDType>(
  device: Device,
  dtype: D,
  shape: readonly number[],
  seed: number,
  scale = 1,
): Tensor<D> {
  return device.tensor(dtype, values(dtype, seed, product(shape), scale), shape);
}

/** A tensor of NaN: what an operation leaves unwritten shows. */
export function poisoned<D extends BenchDType>(
  device: Device,
  dtype: D,
  shape: readonly number[],
): Tensor<D> {
  const length = product(shape);
  const nan =
    dtype === 'bf16'
      ? new Uint16Array(length).fill(0x7fc0)
      : dtype === 'f32'
        ? new Float32Array(length).fill(Number.NaN)
        : new Float64Array(length).fill(Number.NaN);
  return device.tensor(dtype, nan as TypedArrayOf[D], shape);
}

function product(shape: readonly number[]): number {
  return shape.reduce((total, size) => total * size, 1);
}
