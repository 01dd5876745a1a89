import { callNative, native } from '../native.ts';
import type { Tensor } from '../tensor.ts';

/** Elements of a row that share a scale. */
export const BLOCK = 32;
const SCALE_BYTES = 2;

/** A tensor [.., cols] with the values that its quantized blocks would be read back as, in f32. */
export async function roundBlocks(tensor: Tensor, bits: 8 | 4): Promise<Tensor> {
  const values = await tensor.toFloat32();
  callNative(() => native().roundBlocks(values, tensor.shape.at(-1) as number, bits));
  // An f16 scale times an integer fits no smaller dtype.
  return tensor.device.tensor('f32', values, tensor.shape);
}

/** What the blocks take, scales included. */
export function blockBytes({ shape, length }: Tensor, bits: 8 | 4): number {
  const cols = shape.at(-1) as number;
  const rows = cols === 0 ? 0 : length / cols;
  return rows * Math.ceil(cols / BLOCK) * (SCALE_BYTES + (BLOCK * bits) / 8);
}
