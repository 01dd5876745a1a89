import { expected, MolaeError } from './errors.ts';

/** Element types of tensors. `i32` is for expert ids only. */
export type DType = 'f32' | 'f64' | 'f16' | 'bf16' | 'i32';

/** What a tensor of each dtype is made from and read into. Halves are their raw 16 bits. */
export interface TypedArrayOf {
  f32: Float32Array;
  f64: Float64Array;
  f16: Uint16Array;
  bf16: Uint16Array;
  i32: Int32Array;
}

const constructors = {
  f32: Float32Array,
  f64: Float64Array,
  f16: Uint16Array,
  bf16: Uint16Array,
  i32: Int32Array,
} as const;

/** Bytes of one element. */
export function itemSize(dtype: DType): number {
  return constructors[dtype].BYTES_PER_ELEMENT;
}

/** Throws unless `value` names a dtype. */
export function checkDType(value: unknown, name: string): asserts value is DType {
  if (typeof value !== 'string' || !Object.hasOwn(constructors, value)) {
    throw expected('one of f32, f64, f16, bf16, i32', name, value);
  }
}

/** A zeroed typed array for `length` elements. */
export function newTypedArray<D extends DType>(dtype: D, length: number): TypedArrayOf[D] {
  try {
    return new constructors[dtype](length) as TypedArrayOf[D];
  } catch (cause) {
    throw new MolaeError('OUT_OF_MEMORY', `No JavaScript array of ${length} ${dtype} elements can be had`, {
      cause,
    });
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
