import type { Device } from './device.ts';
import { expected, MolaeError } from './errors.ts';
import type { FactorizationReport } from './factorize.ts';
import { awaitAbortable, callNative, type NativeLayer, type NativeOperator } from './native.ts';
import type { Routing } from './routing.ts';
import { checkTensor, Tensor } from './tensor.ts';

/** The three matrices of an expert: E(x) = down · (act(gate · x) ⊙ (up · x)). */
export type Operator = 'gate' | 'up' | 'down';

export const OPERATORS: readonly Operator[] = ['gate', 'up', 'down'];

/** silu(x) = x·σ(x), the exact gelu, its tanh approximation, and relu(x)². */
export type Activation = 'silu' | 'gelu' | 'gelu_tanh' | 'relu2';

/** An operator of all experts as they are: W_i, gate and up [m, n], down [n, m]. One [N, …] tensor serves too. */
export type DenseOperator = readonly Tensor[] | Tensor;

/**
 * An operator of all experts in shared latent spaces: W_i ≈ A_i·B_g (down: B_g·A_i), g the group of expert i.
 * Latent sizes may differ between groups.
 */
export interface LatentOperator {
  /** Per group: [k, m, r] for gate and up, [k, r, m] for down, in the order of the group's experts. */
  readonly a: readonly Tensor[];
  /** Per group: [r, n] for gate and up, [n, r] for down. */
  readonly b: readonly Tensor[];
}

/** An expert that every token passes, scaled by σ(gateLogit · x) where there is one. */
export interface SharedExpert {
  readonly gate: Tensor;
  readonly up: Tensor;
  readonly down: Tensor;
  /** [1, n] */
  readonly gateLogit?: Tensor | undefined;
}

export interface ForwardOptions {
  /** Where y goes; by default a new tensor like x. With it, a call in steady state allocates no device memory. */
  readonly out?: Tensor;
  readonly signal?: AbortSignal | undefined;
}

interface Common {
  readonly activation?: Activation | undefined;
  readonly sharedExpert?: SharedExpert | undefined;
  /** Tensors that go when the layer is disposed. */
  readonly owned?: readonly Tensor[] | undefined;
}

export interface DenseExpertsInit extends Common {
  readonly gate: DenseOperator;
  readonly up: DenseOperator;
  readonly down: DenseOperator;
}

export interface LatentExpertsInit extends Common {
  /** How well the factors stand for the experts they came from. */
  readonly report?: readonly FactorizationReport[] | undefined;
  /** A partition of the experts. */
  readonly groups: readonly (readonly number[])[];
  readonly gate: LatentOperator | DenseOperator;
  readonly up: LatentOperator | DenseOperator;
  readonly down: LatentOperator | DenseOperator;
}

/**
 * The experts of one MoE layer on a device. Weights are f32, f16 or bf16 with f32 arithmetic, or all f64. The tensors
 * given to the constructor stay the caller's, unless listed in `owned`; the layer keeps their memory alive.
 */
export abstract class Experts {
  readonly device: Device;
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly numExperts: number;
  readonly activation: Activation;
  readonly sharedExpert: SharedExpert | undefined;
  readonly #owned: readonly Tensor[];
  #native: NativeLayer | undefined;

  protected constructor(
    groups: readonly (readonly number[])[],
    ops: Record<Operator, LatentOperator | readonly Tensor[]>,
    { activation = 'silu', sharedExpert, owned = [] }: Common,
  ) {
    const gate = expand(ops.gate, groups, 'gate');
    const up = expand(ops.up, groups, 'up');
    const down = expand(ops.down, groups, 'down');
    const first = gate.perExpert[0];
    if (!first) throw new MolaeError('INVALID_ARGUMENT', 'A layer needs at least one expert');
    this.device = first.device;
    this.numExperts = gate.perExpert.length;
    this.intermediateSize = first.shape[0] as number;
    this.hiddenSize = (gate.shared[0] ?? first).shape[1] as number;
    this.activation = activation;
    this.sharedExpert = sharedExpert;
    this.#owned = owned;
    this.#native = callNative(() =>
      this.device.native.prepareLayer({
        activation,
        groups,
        gate: toNative(gate),
        up: toNative(up),
        down: toNative(down),
        sharedExpert: sharedExpert && {
          gate: sharedExpert.gate.native,
          up: sharedExpert.up.native,
          down: sharedExpert.down.native,
          gateLogit: sharedExpert.gateLogit?.native,
        },
      }),
    );
    for (const view of [gate, up, down].flatMap((op) => op.views)) view.dispose();
  }

  /**
   * y [tokens, n] of x [tokens, n]: the weighted sum of the routed experts of each token, plus the shared expert's
   * output. x may be of any floating dtype; y has x's.
   */
  async forward(x: Tensor, routing: Routing, options: ForwardOptions = {}): Promise<Tensor> {
    checkTensor(x, 'x');
    const out = options.out ?? this.device.empty(x.dtype, x.shape);
    await awaitAbortable(options.signal, (cancellation) =>
      this.#alive().forward(x.native, routing.ids.native, routing.weights.native, out.native, cancellation),
    );
    return out;
  }

  /**
   * Like `forward`, on the calling thread, which it blocks; work queued before runs first. For decoding, where a trip
   * through the queue costs more than the arithmetic.
   */
  forwardSync(x: Tensor, routing: Routing, options: { readonly out?: Tensor } = {}): Tensor {
    checkTensor(x, 'x');
    const out = options.out ?? this.device.empty(x.dtype, x.shape);
    callNative(() =>
      this.#alive().forwardSync(x.native, routing.ids.native, routing.weights.native, out.native),
    );
    return out;
  }

  /** Frees what the device prepared, and the tensors that the layer owns. */
  dispose(): void {
    this.#native?.dispose();
    this.#native = undefined;
    for (const tensor of this.#owned) tensor.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #alive(): NativeLayer {
    if (!this.#native) throw new MolaeError('DISPOSED', 'The experts were disposed');
    return this.#native;
  }
}

/** Experts as they come in a checkpoint. */
export class DenseExperts extends Experts {
  readonly gate: readonly Tensor[];
  readonly up: readonly Tensor[];
  readonly down: readonly Tensor[];

  constructor(init: DenseExpertsInit) {
    const ops = {
      gate: denseOperator(init.gate, 'gate'),
      up: denseOperator(init.up, 'up'),
      down: denseOperator(init.down, 'down'),
    };
    super([], ops, init);
    this.gate = ops.gate;
    this.up = ops.up;
    this.down = ops.down;
  }
}

/** Experts in shared latent spaces; operators that were left out stay dense. */
export class LatentExperts extends Experts {
  /** Empty where the factors were given. */
  readonly report: readonly FactorizationReport[];
  readonly groups: readonly (readonly number[])[];
  readonly gate: LatentOperator | readonly Tensor[];
  readonly up: LatentOperator | readonly Tensor[];
  readonly down: LatentOperator | readonly Tensor[];

  constructor(init: LatentExpertsInit) {
    if (!Array.isArray(init.groups)) throw expected('an array of arrays', 'groups', init.groups);
    const ops = {
      gate: anyOperator(init.gate, 'gate'),
      up: anyOperator(init.up, 'up'),
      down: anyOperator(init.down, 'down'),
    };
    super(init.groups, ops, init);
    this.report = init.report ?? [];
    this.groups = init.groups;
    this.gate = ops.gate;
    this.up = ops.up;
    this.down = ops.down;
  }
}

/** True for a factorized operator. */
export function isLatent(op: LatentOperator | DenseOperator): op is LatentOperator {
  return typeof op === 'object' && op !== null && 'a' in op && 'b' in op;
}

function anyOperator(op: LatentOperator | DenseOperator, name: string): LatentOperator | readonly Tensor[] {
  return isLatent(op) ? op : denseOperator(op, name);
}

function denseOperator(op: DenseOperator, name: string): readonly Tensor[] {
  if (op instanceof Tensor) return Array.from({ length: op.shape[0] ?? 0 }, (_, i) => op.slice(i));
  if (!Array.isArray(op)) throw expected('a tensor [N, …] or an array of N matrices', name, op);
  return op;
}

interface ExpandedOperator {
  readonly perExpert: readonly Tensor[];
  readonly shared: readonly Tensor[];
  /** Made here, to be disposed. */
  readonly views: readonly Tensor[];
}

/** Per-expert matrices by expert index, whichever way the operator is given. */
function expand(
  op: LatentOperator | readonly Tensor[],
  groups: readonly (readonly number[])[],
  name: string,
): ExpandedOperator {
  if (!isLatent(op)) {
    op.forEach((tensor, i) => {
      checkTensor(tensor, `${name}[${i}]`);
    });
    return { perExpert: op, shared: [], views: [] };
  }
  if (op.a.length !== groups.length || op.b.length !== groups.length) {
    throw new MolaeError(
      'SHAPE_MISMATCH',
      `Expected ${groups.length} groups for ${name} but received ${op.a.length} a and ${op.b.length} b`,
    );
  }
  const perExpert: Tensor[] = [];
  groups.forEach((group, g) => {
    const a = op.a[g];
    checkTensor(a, `${name}.a[${g}]`);
    checkTensor(op.b[g], `${name}.b[${g}]`);
    if (a.shape.length !== 3 || a.shape[0] !== group.length) {
      throw new MolaeError(
        'SHAPE_MISMATCH',
        `Expected shape [${group.length}, …, …] for ${name}.a[${g}] but received [${a.shape.join(', ')}]`,
      );
    }
    group.forEach((expert, i) => {
      perExpert[expert] = a.slice(i);
    });
  });
  return { perExpert: Array.from(perExpert), shared: op.b, views: perExpert };
}

function toNative(op: ExpandedOperator): NativeOperator {
  return {
    perExpert: op.perExpert.map((tensor) => tensor?.native),
    shared: op.shared.map((tensor) => tensor.native),
  };
}
