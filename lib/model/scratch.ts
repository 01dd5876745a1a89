import type { Device } from '../device.ts';
import type { DType } from '../dtype.ts';
import type { Shape, Tensor } from '../tensor.ts';

/** Activations that are reused from layer to layer and call to call, by name; contents do not survive. */
export class Scratch {
  readonly #device: Device;
  readonly #blocks = new Map<string, Tensor>();

  constructor(device: Device) {
    this.#device = device;
  }

  /** A tensor of this shape in the block of this name, which grows when it has to. */
  get<D extends DType = 'f32'>(name: string, shape: Shape, dtype: D = 'f32' as D): Tensor<D> {
    const length = shape.reduce((product, size) => product * size, 1);
    let block = this.#blocks.get(name);
    if (!block || block.length < length) {
      block?.dispose();
      block = this.#device.empty(dtype, [Math.max(length, 1)]);
      this.#blocks.set(name, block);
    }
    using part = block.rows(0, length);
    return part.reshape(shape) as Tensor<D>;
  }

  dispose(): void {
    for (const block of this.#blocks.values()) block.dispose();
    this.#blocks.clear();
  }
}
