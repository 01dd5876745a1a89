import type { Device } from '../device.ts';
import type { DType } from '../dtype.ts';
import type { Shape, Tensor } from '../tensor.ts';

/** Activations that are reused from layer to layer and call to call, by name; contents do not survive. */
export class Scratch {
  readonly #device: Device;
  readonly #blocks = new Map<string, { readonly memory: Tensor; readonly view: Tensor }>();

  constructor(device: Device) {
    this.#device = device;
  }

  /**
   * A tensor of this shape in the block of this name, which grows when it has to. It is valid until the name is asked for
   * with another shape, and not the caller's to dispose.
   */
  get<D extends DType = 'f32'>(name: string, shape: Shape, dtype: D = 'f32' as D): Tensor<D> {
    const length = shape.reduce((product, size) => product * size, 1);
    const block = this.#blocks.get(name);
    if (block && String(block.view.shape) === String(shape)) return block.view as Tensor<D>;
    block?.view.dispose();
    const fits = block !== undefined && block.memory.length >= length;
    if (!fits) block?.memory.dispose();
    const memory = fits ? block.memory : this.#device.empty(dtype, [Math.max(length, 1)]);
    using part = memory.rows(0, length);
    const view = part.reshape(shape);
    this.#blocks.set(name, { memory, view });
    return view as Tensor<D>;
  }

  dispose(): void {
    for (const { memory, view } of this.#blocks.values()) {
      view.dispose();
      memory.dispose();
    }
    this.#blocks.clear();
  }
}
