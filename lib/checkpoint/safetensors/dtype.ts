import type { FloatDType } from '../../dtype.ts';

/** The dtypes of the safetensors format, by the names that its headers use, with their sizes in bytes. */
export const DTYPE_BYTES = {
  F64: 8,
  F32: 4,
  F16: 2,
  BF16: 2,
  I64: 8,
  I32: 4,
  I16: 2,
  I8: 1,
  U8: 1,
  U16: 2,
  U32: 4,
  U64: 8,
  BOOL: 1,
  F8_E4M3: 1,
  F8_E5M2: 1,
} as const;

/** A dtype by its name in the headers of safetensors files. */
export type SafetensorsDtype = keyof typeof DTYPE_BYTES;

/** The dtypes that molae computes with. */
const STORED_FLOATS = ['F64', 'F32', 'F16', 'BF16'] as const satisfies SafetensorsDtype[];

/** Their names in files; those of tensors in memory are `FloatDType`. */
export type StoredFloat = (typeof STORED_FLOATS)[number];

/** `BF16` → `bf16` */
export function tensorDType(dtype: StoredFloat): FloatDType {
  return dtype.toLowerCase() as FloatDType;
}

/** `bf16` → `BF16` */
export function storedDtype(dtype: FloatDType): StoredFloat {
  return dtype.toUpperCase() as StoredFloat;
}

export function isDtype(value: unknown): value is SafetensorsDtype {
  return typeof value === 'string' && Object.hasOwn(DTYPE_BYTES, value);
}

export function isStoredFloat(value: SafetensorsDtype): value is StoredFloat {
  return (STORED_FLOATS as readonly string[]).includes(value);
}

/** The number of elements of a shape, or undefined when it (or a partial product) passes 2^53 − 1. */
export function elementCount(shape: readonly number[]): number | undefined {
  let count = 1;
  for (const size of shape) {
    count *= size;
    if (count > Number.MAX_SAFE_INTEGER) return undefined;
  }
  return count;
}

/** The bytes of a tensor, or undefined when their number passes 2^53 − 1. */
export function tensorBytes(dtype: SafetensorsDtype, shape: readonly number[]): number | undefined {
  return elementCount([...shape, DTYPE_BYTES[dtype]]);
}

/** Whether `value` is an array of non-negative safe integers. */
export function isShape(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((size) => Number.isSafeInteger(size) && size >= 0);
}

/** Whether a name survives UTF-8: half a surrogate pair does not, and two such names would become one. */
export function isEncodable(name: string): boolean {
  return !/\p{Surrogate}/u.test(name);
}
