import type { Device } from './device.ts';
import type { DType } from './dtype.ts';
import { checkObject, expected, MolaeError } from './errors.ts';
import type { Partition } from './factorization/groups.ts';
import type { FactorizationReport } from './factorization/report.ts';
import { awaitAbortable, callNative, type NativeLayer, type NativeOperator } from './native.ts';
import type { Operator } from './operators.ts';
import type { Routing } from './routing.ts';
import { checkTensor, type ResultTensor, Tensor, withResults } from './tensor.ts';

/** Of one layer. Real ones have hundreds. */
const MOST_EXPERTS = 65_536;

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

/** Where the result of a forward pass goes, and what stops it. */
export interface ForwardOptions<Out extends Tensor | undefined = Tensor | undefined> {
  /** Where y goes; by default a new tensor like x. With it, a call in steady state allocates no device memory. */
  readonly out?: Out;
  readonly signal?: AbortSignal | undefined;
}

/** How `Experts.pack` packs. */
export interface PackOptions {
  /** Dispose the tensors that the layer owns once they are copied: gate, up and down can't be read any more. */
  readonly release?: boolean | undefined;
  /**
   * What bf16 weights are multiplied with. `f32` (the default): all inputs as they are. `bf16`: what goes into each product (x, z, the
   * hidden values, d) is rounded to bf16 first, as in PyTorch; sums stay f32. Where the processor adds up pairs of such products as fast as it
   * multiplies f32 (AVX512-BF16 of AMD's, measured on Zen 4), batches of 512 tokens and more then take about three fifths of the time;
   * elsewhere the results are about the same, but no faster.
   */
  readonly inputs?: 'f32' | 'bf16' | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** What dense and latent experts are made of alike. */
export interface ExpertsInit {
  readonly activation?: Activation | undefined;
  readonly sharedExpert?: SharedExpert | undefined;
  /** Tensors that go when the layer is disposed. */
  readonly owned?: readonly Tensor[] | undefined;
}

/** An operator as a layer keeps it: dense ones as one matrix for each expert. */
export type StoredOperator = LatentOperator | readonly Tensor[];

type StoredOperators = Readonly<Record<Operator, StoredOperator>>;

/** What dense experts are made of. */
export interface DenseExpertsInit extends ExpertsInit {
  readonly gate: DenseOperator;
  readonly up: DenseOperator;
  readonly down: DenseOperator;
}

/** What latent experts are made of. Operators that are given as matrices stay dense. */
export interface LatentExpertsInit extends ExpertsInit {
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
  readonly gate: StoredOperator;
  readonly up: StoredOperator;
  readonly down: StoredOperator;
  readonly #owned: readonly Tensor[];
  #native: NativeLayer | undefined;

  /** @internal Whether `value` is a layer, and no proxy of one. */
  static is(value: unknown): value is Experts {
    return typeof value === 'object' && value !== null && #native in value;
  }

  /** @internal Use {@link DenseExperts} or {@link LatentExperts}. */
  protected constructor(
    init: ExpertsInit,
    groups: Partition,
    operators: (made: Tensor[]) => StoredOperators,
  ) {
    const made: Tensor[] = [];
    const views: Tensor[] = [];
    try {
      const { gate, up, down } = operators(made);
      const { activation = 'silu', sharedExpert, owned = [] } = init;
      if (typeof activation !== 'string')
        throw expected('the name of an activation', 'activation', activation);
      const shared = sharedExpert && checkedSharedExpert(sharedExpert);
      const expanded = {
        gate: expand(gate, groups, 'gate', views),
        up: expand(up, groups, 'up', views),
        down: expand(down, groups, 'down', views),
      };
      const first = expanded.gate.perExpert[0];
      if (!first) throw new MolaeError('INVALID_ARGUMENT', 'A layer needs at least one expert');
      this.device = first.device;
      this.numExperts = expanded.gate.perExpert.length;
      this.intermediateSize = first.shape[0] as number;
      this.hiddenSize = (expanded.gate.shared[0] ?? first).shape[1] as number;
      this.activation = activation;
      this.sharedExpert = shared;
      this.gate = gate;
      this.up = up;
      this.down = down;
      this.#owned = [...checkTensors(owned, 'owned'), ...made];
      this.#native = callNative(() =>
        this.device.native.prepareLayer({
          activation,
          groups,
          gate: toNative(expanded.gate),
          up: toNative(expanded.up),
          down: toNative(expanded.down),
          sharedExpert: shared && {
            gate: shared.gate.native,
            up: shared.up.native,
            down: shared.down.native,
            gateLogit: shared.gateLogit?.native,
          },
        }),
      );
    } catch (error) {
      for (const tensor of made) tensor.dispose();
      throw error;
    } finally {
      for (const view of views) view.dispose();
    }
  }

  /**
   * y [tokens, n] of x [tokens, n]: the weighted sum of the routed experts of each token, plus the shared expert's
   * output. x may be of any floating dtype; y has x's.
   */
  async forward<D extends DType, Out extends Tensor | undefined = undefined>(
    x: Tensor<D>,
    routing: Routing,
    options: ForwardOptions<Out> = {},
  ): Promise<ResultTensor<D, Out>> {
    const { ids, weights, out: given, signal } = checkedCall(x, routing, options);
    return withResults(this.device, async (make) => {
      const out = given ?? make(x.dtype, x.shape);
      await awaitAbortable(signal, (cancellation) =>
        this.#alive().forward(x.native, ids.native, weights.native, out.native, cancellation),
      );
      return out as ResultTensor<D, Out>;
    });
  }

  /**
   * Like `forward`, on the calling thread, which it blocks; work queued before runs first. For decoding, where a trip
   * through the queue costs more than the arithmetic.
   */
  forwardSync<D extends DType, Out extends Tensor | undefined = undefined>(
    x: Tensor<D>,
    routing: Routing,
    options: Pick<ForwardOptions<Out>, 'out'> = {},
  ): ResultTensor<D, Out> {
    const { ids, weights, out: given } = checkedCall(x, routing, options);
    const out = given ?? this.device.empty(x.dtype, x.shape);
    try {
      callNative(() => this.#alive().forwardSync(x.native, ids.native, weights.native, out.native));
    } catch (error) {
      if (!given) out.dispose();
      throw error;
    }
    return out as ResultTensor<D, Out>;
  }

  /**
   * Copies the weights into the order in which this device's kernels read them fastest: as many bytes again, unless `release`
   * gives the others back. Calls of more than 16 tokens become faster from then on; results differ by the rounding of sums.
   * `forward` reads the copy only: whatever tensors were given may be disposed. Does nothing on GPUs, nor where weights are f64, q8
   * or q4.
   *
   * @throws MolaeError `OUT_OF_MEMORY`, `ABORTED`, `DTYPE_MISMATCH` where `inputs` is bf16 and no weight is: the layer is as it was.
   */
  async pack(options: PackOptions = {}): Promise<void> {
    checkObject(options, 'options');
    const { release = false, inputs = 'f32', signal } = options;
    if (inputs !== 'f32' && inputs !== 'bf16') throw expected('f32 or bf16', 'inputs', inputs);
    await awaitAbortable(signal, (cancellation) => this.#alive().pack(inputs, cancellation));
    if (release) for (const tensor of this.#owned) tensor.dispose();
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
  declare readonly gate: readonly Tensor[];
  declare readonly up: readonly Tensor[];
  declare readonly down: readonly Tensor[];

  constructor(init: DenseExpertsInit) {
    checkObject(init, 'init');
    super(init, [], (made) => ({
      gate: denseOperator(init.gate, 'gate', made),
      up: denseOperator(init.up, 'up', made),
      down: denseOperator(init.down, 'down', made),
    }));
  }
}

/** Experts in shared latent spaces; operators that were left out stay dense. */
export class LatentExperts extends Experts {
  /** Empty where the factors were given. */
  readonly report: readonly FactorizationReport[];
  readonly groups: readonly (readonly number[])[];

  constructor(init: LatentExpertsInit) {
    checkObject(init, 'init');
    const groups = checkedGroups(init.groups);
    super(init, groups, (made) => ({
      gate: anyOperator(init.gate, 'gate', made),
      up: anyOperator(init.up, 'up', made),
      down: anyOperator(init.down, 'down', made),
    }));
    this.report = init.report ?? [];
    this.groups = groups;
  }
}

/** True for a factorized operator. */
export function isLatent(op: LatentOperator | DenseOperator): op is LatentOperator {
  return typeof op === 'object' && op !== null && 'a' in op && 'b' in op;
}

function anyOperator(op: LatentOperator | DenseOperator, name: string, made: Tensor[]): StoredOperator {
  if (!isLatent(op)) return denseOperator(op, name, made);
  return { a: checkTensors(op.a, `${name}.a`), b: checkTensors(op.b, `${name}.b`) };
}

/** One matrix for each expert; the slices of a tensor [N, …] go to `made`, too. */
function denseOperator(op: DenseOperator, name: string, made: Tensor[]): readonly Tensor[] {
  if (!Tensor.is(op)) return checkTensors(op, name);
  const experts = op.shape[0] ?? 0;
  if (experts > MOST_EXPERTS) throw expected(`at most ${MOST_EXPERTS} experts`, name, experts);
  return Array.from({ length: experts }, (_, i) => {
    const slice = op.slice(i);
    made.push(slice);
    return slice;
  });
}

/** A copy of a list of tensors. */
function checkTensors(value: unknown, name: string): readonly Tensor[] {
  if (!Array.isArray(value)) throw expected('an array of tensors', name, value);
  if (value.length > MOST_EXPERTS) throw expected(`at most ${MOST_EXPERTS} tensors`, name, value);
  return Array.from(value, (tensor, i) => {
    checkTensor(tensor, `${name}[${i}]`);
    return tensor;
  });
}

function checkedSharedExpert(given: SharedExpert): SharedExpert {
  checkObject(given, 'sharedExpert');
  const { gate, up, down, gateLogit } = given;
  checkTensor(gate, 'sharedExpert.gate');
  checkTensor(up, 'sharedExpert.up');
  checkTensor(down, 'sharedExpert.down');
  if (gateLogit !== undefined) checkTensor(gateLogit, 'sharedExpert.gateLogit');
  return { gate, up, down, gateLogit };
}

/** A copy. That it is a partition of the layer's experts the device checks. */
function checkedGroups(value: unknown): Partition {
  if (!Array.isArray(value) || !(value.length <= MOST_EXPERTS) || !value.every(isGroup)) {
    throw expected(`an array of arrays of expert indices below ${MOST_EXPERTS}`, 'groups', value);
  }
  return Array.from(value, (group: readonly number[]) => Array.from(group));
}

function isGroup(value: unknown): boolean {
  const isIndex = (i: unknown) =>
    Number.isSafeInteger(i) && (i as number) >= 0 && (i as number) < MOST_EXPERTS;
  return Array.isArray(value) && value.length <= MOST_EXPERTS && value.every(isIndex);
}

/** The arguments of a call, each read once: getters may give something else the next time. */
function checkedCall(x: Tensor, routing: Routing, options: ForwardOptions) {
  checkTensor(x, 'x');
  checkObject(routing, 'routing');
  const { ids, weights } = routing;
  checkTensor(ids, 'routing.ids');
  checkTensor(weights, 'routing.weights');
  checkObject(options, 'options');
  const { out, signal } = options;
  if (out !== undefined) checkTensor(out, 'out');
  return { ids, weights, out, signal };
}

interface ExpandedOperator {
  readonly perExpert: readonly Tensor[];
  readonly shared: readonly Tensor[];
}

/** Per-expert matrices by expert index, whichever way the operator is given; views made here go to `views`. */
function expand(op: StoredOperator, groups: Partition, name: string, views: Tensor[]): ExpandedOperator {
  if (!isLatent(op)) return { perExpert: op, shared: [] };
  if (op.a.length !== groups.length || op.b.length !== groups.length) {
    throw new MolaeError(
      'SHAPE_MISMATCH',
      `Expected ${groups.length} groups for ${name} but received ${op.a.length} a and ${op.b.length} b`,
    );
  }
  const perExpert: Tensor[] = [];
  groups.forEach((group, g) => {
    const a = op.a[g] as Tensor;
    if (a.shape.length !== 3 || a.shape[0] !== group.length) {
      throw new MolaeError(
        'SHAPE_MISMATCH',
        `Expected shape [${group.length}, …, …] for ${name}.a[${g}] but received [${a.shape.join(', ')}]`,
      );
    }
    group.forEach((expert, i) => {
      const view = a.slice(i);
      views.push(view);
      perExpert[expert] = view;
    });
  });
  const missing = Array.from<Tensor | undefined>(perExpert).indexOf(undefined);
  if (missing >= 0) throw new MolaeError('INVALID_ARGUMENT', `Expert ${missing} is in no group`);
  return { perExpert, shared: op.b };
}

function toNative(op: ExpandedOperator): NativeOperator {
  return {
    perExpert: op.perExpert.map((tensor) => tensor.native),
    shared: op.shared.map((tensor) => tensor.native),
  };
}
