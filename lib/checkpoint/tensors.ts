import type { Device } from '../device.ts';
import { type FloatDType, isBlockDType, type TypedArrayOf, type WeightDType } from '../dtype.ts';
import type { Shape, Tensor } from '../tensor.ts';

/** A tensor on `device` with a copy of a checkpoint's bytes. */
export function tensorFromBytes(
  device: Device,
  dtype: FloatDType,
  bytes: Uint8Array,
  shape: Shape,
): Tensor<FloatDType> {
  return device.tensor(dtype, elementsOf(dtype, bytes), shape);
}

/** The bytes of a tensor as they are stored, read into `buffer`, which has room for them. */
export async function tensorBytesInto(tensor: Tensor<WeightDType>, buffer: ArrayBuffer): Promise<Uint8Array> {
  const bytes = new Uint8Array(buffer, 0, tensor.byteLength);
  await tensor.read(elementsOf(tensor.dtype, bytes));
  return bytes;
}

/** The same memory as elements, a copy only where it is not aligned for them. */
function elementsOf<D extends WeightDType>(dtype: D, bytes: Uint8Array): TypedArrayOf[D] {
  if (isBlockDType(dtype)) return bytes as TypedArrayOf[D];
  const Elements = dtype === 'f64' ? Float64Array : dtype === 'f32' ? Float32Array : Uint16Array;
  const aligned = bytes.byteOffset % Elements.BYTES_PER_ELEMENT === 0 ? bytes : bytes.slice();
  return new Elements(
    aligned.buffer as ArrayBuffer,
    aligned.byteOffset,
    aligned.byteLength / Elements.BYTES_PER_ELEMENT,
  ) as TypedArrayOf[D];
}
