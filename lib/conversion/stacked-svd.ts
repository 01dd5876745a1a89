import type { Checkpoint } from '../checkpoint/checkpoint.ts';
import { namingTensor } from '../checkpoint/non-finite-tensor.ts';
import type { Device } from '../device.ts';
import { MolaeError } from '../errors.ts';
import { consecutiveGroups, type Partition, resolveGroups } from '../factorization/groups.ts';
import { type CheckedSpec, checkSpec, type FactorizationSpec } from '../factorization/spec.ts';
import { factorizeGroup, loadOrder } from '../factorization/stacked-group.ts';
import type { Operator } from '../operators.ts';
import { planConversion } from '../plan/plan-conversion.ts';
import { ExpertReader, ReadBuffers } from './expert-reader.ts';
import type { FactorShapes, GroupFactors, LayerMethod, LayerWriter, StepListener } from './layer-method.ts';
import type { OutputOptions } from './options.ts';

/** What decides groups and latent sizes. */
export interface SizeOptions extends Omit<FactorizationSpec, 'latentSize'> {
  /** r, for all operators or for each. Exactly one of `latentSize` and `targetRatio` is needed. */
  readonly latentSize?: FactorizationSpec['latentSize'] | undefined;
  /** Remove at least this share of the routed experts' parameters, between 0 and 1. */
  readonly targetRatio?: number | undefined;
  /** k; without it (and `groups`) the planner chooses, see `reason` in the report. */
  readonly groupSize?: number | undefined;
  /** Explicit groups, the same in every layer: a partition of the experts. */
  readonly groups?: readonly (readonly number[])[] | undefined;
}

/** The paper's factorization, which sees the weights alone: expert by expert, one in memory at a time. */
export class StackedSvd implements LayerMethod {
  readonly name = 'stacked-svd';
  readonly shapes: FactorShapes;
  readonly reason: string | undefined;
  readonly fingerprint: unknown;
  readonly stepsPerLayer: number;
  readonly #checkpoint: Checkpoint;
  readonly #device: Device;
  readonly #groups: Partition;
  readonly #spec: CheckedSpec;
  readonly #buffers: ReadBuffers;
  readonly #signal: AbortSignal | undefined;

  constructor(
    checkpoint: Checkpoint,
    device: Device,
    options: SizeOptions & Pick<OutputOptions, 'quantize' | 'signal'>,
  ) {
    const { groups, spec, reason } = resolveSizes(checkpoint, options);
    this.#checkpoint = checkpoint;
    this.#device = device;
    this.#groups = groups;
    this.#spec = spec;
    this.#buffers = new ReadBuffers(checkpoint);
    this.#signal = options.signal;
    this.reason = reason;
    this.shapes = {
      groups: () => groups,
      operators: spec.operators,
      sharedGateUp: spec.sharedGateUp,
      quantization: options.quantize,
      latentSize: (_layer, operator) => spec.latentSizes[operator],
    };
    this.fingerprint = { spec, device: device.info.kind };
    this.stepsPerLayer = 2 * spec.operators.length * checkpoint.spec.numExperts;
  }

  async run(wanted: readonly number[], write: LayerWriter, step: StepListener): Promise<void> {
    for (const layer of wanted) {
      await namingTensor(this.#checkpoint, layer, () => write(layer, this.#factorizeLayer(layer, step)));
    }
  }

  async *#factorizeLayer(layer: number, step: StepListener): AsyncGenerator<GroupFactors> {
    for (const group of this.#groups.keys()) yield* this.#factorizeGroup(layer, group, step);
  }

  async *#factorizeGroup(layer: number, group: number, step: StepListener): AsyncGenerator<GroupFactors> {
    const { hiddenSize, intermediateSize } = this.#checkpoint.spec;
    const members = this.#groups[group] as readonly number[];
    const order = loadOrder(this.#spec, members.length);
    const reader = new ExpertReader(this.#checkpoint, this.#device, this.#buffers, { layer, members, order });
    let operator: Operator = 'gate';
    const source = {
      device: this.#device,
      group,
      members,
      hiddenSize,
      intermediateSize,
      dtype: (of: Operator) => this.shapes.quantization ?? this.#checkpoint.expertDtype(layer, of),
      load: (of: Operator, index: number) => {
        operator = of;
        return reader.load(of, index);
      },
      release: (tensor: { dispose(): void }) => tensor.dispose(),
      step: () => step({ layer, operator, group }),
      signal: this.#signal,
    };
    try {
      for await (const factors of factorizeGroup(source, this.#spec)) {
        try {
          yield { group, factors };
        } finally {
          for (const [, { a, b }] of factors) {
            a.dispose();
            b.dispose();
          }
        }
      }
    } finally {
      await reader.close();
    }
  }
}

interface Sizes {
  readonly groups: Partition;
  readonly spec: CheckedSpec;
  readonly reason?: string;
}

/** Groups and latent sizes, as given or as the planner chooses them. */
function resolveSizes({ spec: model }: Checkpoint, options: SizeOptions): Sizes {
  const { latentSize, targetRatio, groupSize, groups } = options;
  if ((latentSize === undefined) === (targetRatio === undefined)) {
    throw new MolaeError('INVALID_ARGUMENT', 'Give either latentSize or targetRatio');
  }
  if (latentSize !== undefined && (groups !== undefined || groupSize !== undefined)) {
    const resolved = resolveGroups({ groups, groupSize }, model.numExperts);
    return { groups: resolved, spec: checkSpec({ ...options, latentSize }, model, resolved) };
  }
  if (groups !== undefined) {
    throw new MolaeError(
      'INVALID_ARGUMENT',
      'Explicit groups need a latentSize: the planner works with equal groups',
    );
  }
  if (typeof latentSize === 'object') {
    throw new MolaeError(
      'INVALID_ARGUMENT',
      'Latent sizes of their own for gate, up and down need a groupSize',
    );
  }
  const plan = planConversion(model, {
    ...(groupSize !== undefined && { groupSize }),
    ...(latentSize !== undefined && { latentSize }),
    ...(targetRatio !== undefined && { targetRatio }),
    ...(options.operators !== undefined && { operators: options.operators }),
    sharedGateUp: options.sharedGateUp ?? false,
  });
  const resolved = consecutiveGroups(model.numExperts, plan.groupSize);
  return {
    groups: resolved,
    spec: checkSpec({ ...options, latentSize: plan.latentSize }, model, resolved),
    reason: plan.reason,
  };
}
