import { checkDevice, type Device } from '../device.ts';
import { isBlockDType, type WeightDType } from '../dtype.ts';
import { checkObject } from '../errors.ts';
import {
  DenseExperts,
  type Experts,
  LatentExperts,
  type LatentOperator,
  type SharedExpert,
} from '../experts.ts';
import { MoeBlock } from '../moe-block.ts';
import { OPERATORS, type Operator } from '../operators.ts';
import type { Shape, Tensor } from '../tensor.ts';
import type { Checkpoint } from './checkpoint.ts';
import { operatorShape } from './family.ts';
import { expertFactor, type LatentFactor, latentTensorName, sharedFactor } from './latent-format.ts';
import { tensorFromBytes } from './tensors.ts';

/** How the experts of a layer are loaded. */
export interface LoadOptions {
  readonly device: Device;
  /**
   * Converts the weights; by default they keep the checkpoint's dtype. `q8` and `q4` round the routed experts to blocks;
   * shared ones stay as they are.
   */
  readonly dtype?: WeightDType | undefined;
}

/**
 * The experts of a MoE layer, routed and shared, on a device: DenseExperts for a dense layer, LatentExperts for a
 * converted one. They own their tensors.
 */
export async function loadExperts(
  checkpoint: Checkpoint,
  layer: number,
  options: LoadOptions,
): Promise<Experts> {
  const loader = new Loader(checkpoint, options);
  try {
    return await loader.experts(layer);
  } catch (error) {
    loader.dispose();
    throw error;
  }
}

/** A whole MoE layer on a device: router, routed and shared experts. */
export async function loadMoeBlock(
  checkpoint: Checkpoint,
  layer: number,
  options: LoadOptions,
): Promise<MoeBlock> {
  // The experts own what they load, and not the router: they may let go of it before.
  const [routers, experts] = [new Loader(checkpoint, options), new Loader(checkpoint, options)];
  try {
    const { family, spec } = checkpoint;
    const bias = family.correctionBiasTensor?.(layer);
    return new MoeBlock({
      router: await routers.fullPrecision(family.routerTensor(layer)),
      spec: spec.router,
      correctionBias: bias === undefined ? undefined : await routers.fullPrecision(bias, [spec.numExperts]),
      experts: await experts.experts(layer),
    });
  } catch (error) {
    routers.dispose();
    experts.dispose();
    throw error;
  }
}

/** Any floating tensor of a checkpoint on a device, in its own dtype. */
export async function loadTensor(
  checkpoint: Checkpoint,
  name: string,
  device: Device,
): Promise<Tensor<WeightDType>> {
  return new Loader(checkpoint, { device }).named(name);
}

/** Loads tensors and keeps count of them, to hand them over together or let go of them together. */
class Loader {
  readonly #checkpoint: Checkpoint;
  readonly #device: Device;
  readonly #dtype: WeightDType | undefined;
  readonly #made: Tensor[] = [];

  constructor(checkpoint: Checkpoint, options: LoadOptions) {
    checkObject(options, 'options');
    const { device, dtype } = options;
    checkDevice(device);
    this.#checkpoint = checkpoint;
    this.#device = device;
    this.#dtype = dtype;
  }

  dispose(): void {
    for (const tensor of this.#made) tensor.dispose();
  }

  keep<T extends Tensor>(tensor: T): T {
    this.#made.push(tensor);
    return tensor;
  }

  async experts(layer: number): Promise<Experts> {
    const { latentOperators, groups } = this.#checkpoint.layer(layer);
    const { activation } = this.#checkpoint.spec;
    const sharedExpert = await this.#sharedExpert(layer);
    const dense = async (operator: Operator): Promise<Tensor[]> => {
      const experts: Tensor[] = [];
      for (let expert = 0; expert < this.#checkpoint.spec.numExperts; expert++) {
        experts.push(await this.#expert(layer, expert, operator));
      }
      return experts;
    };
    if (latentOperators.length === 0) {
      const [gate, up, down] = [await dense('gate'), await dense('up'), await dense('down')];
      return new DenseExperts({ gate, up, down, activation, sharedExpert, owned: this.#made });
    }
    const shared = new Map<string, Tensor>();
    const operators: Partial<Record<Operator, LatentOperator | Tensor[]>> = {};
    for (const operator of OPERATORS) {
      operators[operator] = latentOperators.includes(operator)
        ? await this.#latent(layer, operator, shared)
        : await dense(operator);
    }
    return new LatentExperts({
      groups: groups.map((group) => group.experts),
      ...(operators as Record<Operator, LatentOperator | Tensor[]>),
      activation,
      sharedExpert,
      owned: this.#made,
    });
  }

  /** A tensor by its name. */
  async named(name: string): Promise<Tensor<WeightDType>> {
    const { shards, weights } = this.#checkpoint;
    const stored = tensorFromBytes(
      this.#device,
      weights.dtype(name),
      await weights.read(name),
      shards.tensor(name).shape,
    );
    return this.#convert(stored, isBlockDType(this.#dtype) ? undefined : this.#dtype);
  }

  /** A small tensor in f32, whatever dtype was asked for: what routers decide must not depend on that. */
  async fullPrecision(name: string, shape?: Shape): Promise<Tensor<'f32'>> {
    const { shards, weights } = this.#checkpoint;
    const bytes = await weights.read(name);
    const own = shape ?? shards.tensor(name).shape;
    const stored = tensorFromBytes(this.#device, weights.dtype(name), bytes, own);
    if (stored.dtype === 'f32') return this.keep(stored as Tensor<'f32'>);
    using narrow = stored;
    return this.keep(await narrow.to('f32'));
  }

  async #expert(layer: number, expert: number, operator: Operator): Promise<Tensor> {
    const bytes = await this.#checkpoint.readExpert(layer, expert, operator);
    const shape = operatorShape(this.#checkpoint.spec, operator);
    const dtype = this.#checkpoint.expertDtype(layer, operator);
    return this.#convert(tensorFromBytes(this.#device, dtype, bytes, shape), this.#dtype);
  }

  async #factor(layer: number, group: number, operator: Operator, factor: LatentFactor): Promise<Tensor> {
    const { family, blockShapes, shards, weights } = this.#checkpoint;
    const name = latentTensorName(family.expertsPrefix(layer), group, factor);
    const dtype = this.#checkpoint.layer(layer).dtypes[operator];
    const shape = blockShapes.get(name) ?? shards.tensor(name).shape;
    const stored = isBlockDType(dtype)
      ? this.#device.tensor(dtype, await shards.read(name), shape)
      : tensorFromBytes(this.#device, dtype, await weights.read(name), shape);
    return this.#convert(stored, this.#dtype);
  }

  /** `shared`: the bases that gate and up have in common, so that each is loaded once. */
  async #latent(layer: number, operator: Operator, shared: Map<string, Tensor>): Promise<LatentOperator> {
    const a: Tensor[] = [];
    const b: Tensor[] = [];
    for (const [group, { sharedGateUp }] of this.#checkpoint.layer(layer).groups.entries()) {
      a.push(await this.#factor(layer, group, operator, expertFactor(operator)));
      const factor = sharedFactor(operator, sharedGateUp);
      const key = `${group}.${factor}`;
      const basis = shared.get(key) ?? (await this.#factor(layer, group, operator, factor));
      shared.set(key, basis);
      b.push(basis);
    }
    return { a, b };
  }

  async #sharedExpert(layer: number): Promise<SharedExpert | undefined> {
    const names = this.#checkpoint.family.sharedExpertTensors?.(layer);
    if (!names || !this.#checkpoint.spec.sharedExpert) return undefined;
    return {
      gate: await this.named(names.gate),
      up: await this.named(names.up),
      down: await this.named(names.down),
      gateLogit: names.router === undefined ? undefined : await this.named(names.router),
    };
  }

  async #convert(tensor: Tensor<WeightDType>, dtype: WeightDType | undefined): Promise<Tensor<WeightDType>> {
    const stored = this.keep(tensor);
    if (dtype === undefined || dtype === stored.dtype) return stored;
    const converted = this.keep(await stored.to(dtype));
    stored.dispose();
    return converted;
  }
}
