import { expected, MolaeError, shapeText } from './errors.ts';

/**
 * Element types of tensors. `i32` is for expert ids only; `q8` and `q4` are for weights that experts multiply: every row
 * in blocks of 32 elements, 8 or 4 bits each and an f16 scale (the bytes are llama.cpp's q8_0 and q4_0).
 */
export type DType = FloatDType | BlockDType | 'i32';

/** IEEE 754 with 32, 64 and 16 bits, and bfloat16: the upper 16 bits of an f32. */
export type FloatDType = 'f32' | 'f64' | 'f16' | 'bf16';

/** Weights in blocks. CPU only. */
export type BlockDType = 'q8' | 'q4';

/** What weights can be stored as. */
export type WeightDType = FloatDType | BlockDType;

/** What a tensor of each dtype is made from and read into. Halves are their raw 16 bits, blocks their bytes. */
export interface TypedArrayOf {
  f32: Float32Array;
  f64: Float64Array;
  f16: Uint16Array;
  bf16: Uint16Array;
  i32: Int32Array;
  q8: Uint8Array;
  q4: Uint8Array;
}

const constructors = {
  f32: Float32Array,
  f64: Float64Array,
  f16: Uint16Array,
  bf16: Uint16Array,
  i32: Int32Array,
  q8: Uint8Array,
  q4: Uint8Array,
} as const;

/** Elements of a row that share a scale. */
export const BLOCK = 32;

const SCALE_BYTES = 2;

const BLOCK_BYTES: Readonly<Record<BlockDType, number>> = {
  q8: SCALE_BYTES + BLOCK,
  q4: SCALE_BYTES + BLOCK / 2,
};

export const BLOCK_DTYPES: readonly BlockDType[] = ['q8', 'q4'];

export function isBlockDType(dtype: unknown): dtype is BlockDType {
  return dtype === 'q8' || dtype === 'q4';
}

/** Throws unless `value` names a dtype of blocks. */
export function checkBlockDType(value: unknown, name: string): asserts value is BlockDType {
  if (!isBlockDType(value)) throw expected('q8 or q4', name, value);
}

/** Bits of an element, without its share of the scale. */
export function bitsOf(dtype: BlockDType): 8 | 4 {
  return dtype === 'q8' ? 8 : 4;
}

/** Items of the dtype's typed array that a tensor takes: elements, or bytes of blocks, which end with each row. */
export function itemCount(dtype: DType, shape: readonly number[]): number {
  const product = (sizes: readonly number[]) => sizes.reduce((count, size) => count * size, 1);
  if (!isBlockDType(dtype)) return product(shape);
  return product(shape.slice(0, -1)) * Math.ceil((shape.at(-1) ?? 0) / BLOCK) * BLOCK_BYTES[dtype];
}

/** Bytes of a tensor. */
export function byteCount(dtype: DType, shape: readonly number[]): number {
  return itemCount(dtype, shape) * constructors[dtype].BYTES_PER_ELEMENT;
}

/** Bytes of one element. */
export function elementBytes(dtype: FloatDType): number {
  return constructors[dtype].BYTES_PER_ELEMENT;
}

/** Throws unless `value` names a dtype. */
export function checkDType(value: unknown, name: string): asserts value is DType {
  if (typeof value !== 'string' || !Object.hasOwn(constructors, value)) {
    throw expected('one of f32, f64, f16, bf16, i32, q8, q4', name, value);
  }
}

/** A zeroed typed array for a tensor. */
export function newTypedArray<D extends DType>(dtype: D, shape: readonly number[]): TypedArrayOf[D] {
  const length = itemCount(dtype, shape);
  try {
    return new constructors[dtype](length) as TypedArrayOf[D];
  } catch (cause) {
    const message = `No JavaScript array for a ${dtype} tensor of shape ${shapeText(shape)} can be had`;
    throw new MolaeError('OUT_OF_MEMORY', message, { cause });
  }
}

/** True where `data` can hold elements of `dtype`: its own typed array, or Float16Array for f16. */
export function holds(dtype: DType, data: unknown): data is NodeJS.TypedArray {
  if (!ArrayBuffer.isView(data)) return false; // a proxy of a typed array is none
  return (
    data instanceof constructors[dtype] || (dtype === 'f16' && data.constructor?.name === 'Float16Array')
  );
}

/** "a Float32Array", for error messages. */
export function holderName(dtype: DType): string {
  return `a ${constructors[dtype].name}`;
}
