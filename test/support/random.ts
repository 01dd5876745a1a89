import type { Device } from '../../lib/device.ts';
import type { DType, TypedArrayOf } from '../../lib/dtype.ts';
import type { Tensor } from '../../lib/tensor.ts';
import type { Matrix } from './reference.ts';

/** Seeded random numbers: a failing case can be run again. */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = (seed ^ 0x9e3779b9) >>> 0;
  }

  /** In [0, 1), by mulberry32. */
  uniform(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }

  integer(below: number): number {
    return Math.floor(this.uniform() * below);
  }

  normal(): number {
    return Math.sqrt(-2 * Math.log(1 - this.uniform())) * Math.cos(2 * Math.PI * this.uniform());
  }

  /** Random normal values, rounded to `dtype` so that every implementation starts from the same numbers. */
  matrix(rows: number, cols: number, scale = 1, dtype: DType = 'f32'): Matrix {
    const data = new Float64Array(rows * cols);
    for (let i = 0; i < data.length; i++) data[i] = roundTo(dtype, this.normal() * scale);
    return { rows, cols, data };
  }

  /** `topK` different experts for each token, and positive weights. */
  routing(tokens: number, experts: number, topK: number): { ids: Int32Array; weights: Float32Array } {
    const ids = new Int32Array(tokens * topK);
    const weights = new Float32Array(tokens * topK);
    for (let t = 0; t < tokens; t++) {
      const pool = Array.from({ length: experts }, (_, i) => i);
      for (let k = 0; k < topK; k++) {
        ids[t * topK + k] = pool.splice(this.integer(pool.length), 1)[0] as number;
        weights[t * topK + k] = this.uniform() + 0.01;
      }
    }
    return { ids, weights };
  }
}

const f32 = new Float32Array(1);
const bits = new Uint32Array(f32.buffer);

export function toBf16Bits(value: number): number {
  f32[0] = value;
  const b = bits[0] as number;
  return ((b + 0x7fff + ((b >>> 16) & 1)) >>> 16) & 0xffff;
}

export function fromBf16Bits(half: number): number {
  bits[0] = half << 16;
  return f32[0] as number;
}

/** f16 by its definition: a multiple of its spacing, rounded to even. */
export function toF16Bits(value: number): number {
  const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0;
  const x = Math.abs(value);
  const exponent = Math.max(-14, Math.floor(Math.log2(x)));
  const spacing = 2 ** (exponent - 10);
  const scaled = x / spacing;
  let mantissa = Math.round(scaled);
  if (Math.abs(scaled - Math.trunc(scaled)) === 0.5 && mantissa % 2 === 1) mantissa--;
  const rounded = mantissa * spacing;
  if (rounded >= 65536) return sign | 0x7c00;
  if (rounded < 2 ** -14) return sign | Math.round(rounded / 2 ** -24);
  const e = Math.floor(Math.log2(rounded));
  return sign | ((e + 15) << 10) | (rounded / 2 ** (e - 10) - 1024);
}

export function fromF16Bits(half: number): number {
  const sign = half & 0x8000 ? -1 : 1;
  const exponent = (half >> 10) & 0x1f;
  const mantissa = half & 0x3ff;
  if (exponent === 0) return sign * mantissa * 2 ** -24;
  if (exponent === 31) return mantissa ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return sign * (1 + mantissa / 1024) * 2 ** (exponent - 15);
}

export function roundTo(dtype: DType, value: number): number {
  switch (dtype) {
    case 'f64':
      return value;
    case 'f32':
      return Math.fround(value);
    case 'bf16':
      return fromBf16Bits(toBf16Bits(value));
    case 'f16':
      return fromF16Bits(toF16Bits(value));
    default:
      return Math.trunc(value);
  }
}

/** The typed array that a tensor of `dtype` is made from. */
export function encode<D extends DType>(dtype: D, values: ArrayLike<number>): TypedArrayOf[D] {
  const list = Array.from(values);
  switch (dtype) {
    case 'f32':
      return Float32Array.from(list) as TypedArrayOf[D];
    case 'f64':
      return Float64Array.from(list) as TypedArrayOf[D];
    case 'i32':
      return Int32Array.from(list) as TypedArrayOf[D];
    case 'bf16':
      return Uint16Array.from(list, toBf16Bits) as TypedArrayOf[D];
    default:
      return Uint16Array.from(list, toF16Bits) as TypedArrayOf[D];
  }
}

export function toTensor<D extends DType>(device: Device, dtype: D, m: Matrix): Tensor<D> {
  return device.tensor(dtype, encode(dtype, m.data), [m.rows, m.cols]);
}

/** A tensor full of NaN: what an operation leaves unwritten shows. */
export function poisoned<D extends 'f32' | 'f64' | 'bf16' | 'f16'>(
  device: Device,
  dtype: D,
  shape: number[],
): Tensor<D> {
  const length = shape.reduce((product, size) => product * size, 1);
  const nan = dtype === 'bf16' ? 0x7fc0 : dtype === 'f16' ? 0x7e00 : Number.NaN;
  const data =
    dtype === 'f64'
      ? new Float64Array(length)
      : dtype === 'f32'
        ? new Float32Array(length)
        : new Uint16Array(length);
  return device.tensor(dtype, data.fill(nan) as TypedArrayOf[D], shape);
}
