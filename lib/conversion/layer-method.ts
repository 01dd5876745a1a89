import type { BlockDType } from '../dtype.ts';
import type { OperatorFactors } from '../factorization/factors.ts';
import type { Operator } from '../operators.ts';

/** What the factors of a checkpoint look like: known before the first of them is made. */
export interface FactorShapes {
  /** The operators that are factorized. */
  readonly operators: readonly Operator[];
  /** One B for gate and up. */
  readonly sharedGateUp: boolean;
  /** The blocks that the factors come in; undefined for the source's dtype. */
  readonly quantization: BlockDType | undefined;
  /** A partition of the experts of a layer. */
  groups(layer: number): readonly (readonly number[])[];
  /** r */
  latentSize(layer: number, operator: Operator, group: number): number;
}

/** The factors of one group of a layer. They are valid until the next group is asked for. */
export interface GroupFactors {
  readonly group: number;
  readonly factors: readonly (readonly [Operator, OperatorFactors])[];
}

/** Takes the factors of a layer. */
export type LayerWriter = (layer: number, groups: AsyncIterable<GroupFactors>) => Promise<void>;

/** How the factors of the layers of a checkpoint are made. */
export interface LayerMethod {
  /** As in the `molae` block of the output's config. */
  readonly name: string;
  readonly shapes: FactorShapes;
  /** Why these groups and latent sizes, where they were not given. */
  readonly reason: string | undefined;
  /** What the bytes of the result depend on, beside the source and the shapes. */
  readonly fingerprint: unknown;
  /** What a run that goes on from here can know without finding it out again; see `OutputFolder.remembered`. */
  readonly memory?: unknown;
  /** How the result came about, for the `molae` block of the output's config. */
  readonly provenance?: Readonly<Record<string, unknown>> | undefined;
  /** How often `step` is called for a layer. */
  readonly stepsPerLayer: number;
  /** Makes the factors of the wanted layers, in their order. */
  run(wanted: readonly number[], write: LayerWriter, step: StepListener): Promise<void>;
}

/** Called after every piece of work. */
export type StepListener = (at: { layer: number; operator: Operator; group: number }) => void;
