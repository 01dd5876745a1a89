import { BLOCK, type BlockDType } from '../../dtype.ts';
import { expected } from '../../errors.ts';
import type { DenseExperts } from '../../experts.ts';
import { calibratedSpectra, factorizeCalibrated } from '../../factorization/calibrated.ts';
import type { CalibratedSteps, OperatorSpectrum } from '../../factorization/calibrated-group.ts';
import type { FactorStorage } from '../../factorization/factors.ts';
import type { Partition } from '../../factorization/groups.ts';
import { allocateLatentSizes, type Spending } from '../../factorization/latent-sizes.ts';
import type { CalibrationLayer } from '../../model/calibration-layer.ts';
import { OPERATORS, type Operator } from '../../operators.ts';
import { type Compressor, type Method, type MethodRequest, withExperts } from '../method.ts';
import { costsOf, planSizes } from '../sizes.ts';
import { type SurveyRequest, survey } from './survey.ts';

/** Latent sizes of the groups of a layer. */
export type LayerLatentSizes = Record<Operator, number[]>;

/**
 * k where nothing is said: each expert for itself computes least, and lost no more than any larger group where latent
 * sizes go where they are worth most (docs/choosing.md).
 */
export const CALIBRATED_GROUP_SIZE = 1;

/** Activation-aware bases and factors, with latent sizes where they are worth most. */
export const calibrated: Method = calibratedIn(undefined, {
  name: 'calibrated',
  summary: 'bases and factors fitted to what the experts put out on calibration text; latent sizes by worth',
});

/** The calibrated method with its factors in blocks of 8 bits, each expert's fitted to the rounded basis. */
export const calibrated8Bits: Method = calibratedIn('q8', {
  name: 'calibrated-q8',
  summary: 'calibrated, its factors in blocks of 32 with 8 bits each',
});

/** The calibrated method with its factors in blocks of 4 bits. */
export const calibrated4Bits: Method = calibratedIn('q4', {
  name: 'calibrated-q4',
  summary: 'calibrated, its factors in blocks of 32 with 4 bits each',
});

function calibratedIn(dtype: BlockDType | undefined, named: Pick<Method, 'name' | 'summary'>): Method {
  return {
    ...named,
    grouped: true,
    check: checkAllocation,
    async prepare(request) {
      const { groupSize = CALIBRATED_GROUP_SIZE } = request;
      const quantized = dtype !== undefined;
      const { latentSizes } = await allocateOverLayers({ ...request, groupSize, quantized });
      const sizesOf = (layer: number) => latentSizes.get(layer) as LayerLatentSizes;
      return calibratedCompressor(request, { groupSize }, sizesOf, { dtype });
    },
  };
}

/** The same with one latent size everywhere. */
export const calibratedUniform: Method = {
  name: 'calibrated-uniform',
  summary: 'calibrated, with the same latent size everywhere',
  grouped: true,
  check: (request) => void planSizes(request),
  async prepare(request) {
    const { groupSize, latentSize } = planSizes(request);
    return calibratedCompressor(request, { groupSize }, () => latentSize);
  },
};

function checkAllocation(request: MethodRequest): void {
  const { groupSize, latentSize } = planSizes({
    ...request,
    groupSize: request.groupSize ?? CALIBRATED_GROUP_SIZE,
  });
  const least = stepFor(request.model.checkpoint.spec.hiddenSize);
  if (latentSize >= least) return;
  const wanted = `a share that leaves a latent size of ${least} with groupSize ${groupSize}`;
  throw expected(wanted, 'targetRatio', request.targetRatio);
}

/** What is factorized, and who shares. */
export interface CalibratedForm {
  readonly groupSize: number;
  /** By default all. */
  readonly operators?: readonly Operator[] | undefined;
  readonly sharedGateUp?: boolean | undefined;
}

interface CompressorGroups {
  /** Of a layer; by default consecutive experts. */
  readonly groupsOf?: ((layer: number) => Partition) | undefined;
}

/** Makes latent experts of a form, layer by layer. */
export function calibratedCompressor(
  { signal }: Pick<MethodRequest, 'signal'>,
  { groupSize, groupsOf, operators = OPERATORS, sharedGateUp }: CalibratedForm & CompressorGroups,
  latentSize: (layer: number) => number | LayerLatentSizes,
  steps: CalibratedSteps & FactorStorage = {},
): Compressor {
  return {
    groupSize,
    async compress(layer: CalibrationLayer) {
      const sizes = latentSize(layer.layer);
      const experts = await factorizeCalibrated(layer.block.experts as DenseExperts, layer, {
        ...steps,
        ...(groupsOf ? { groups: groupsOf(layer.layer) } : { groupSize }),
        sharedGateUp,
        latentSize: Object.fromEntries(
          operators.map((operator) => [operator, typeof sizes === 'number' ? sizes : sizes[operator]]),
        ),
        signal,
      });
      return withExperts(layer, experts, costsOf(experts, layer.block.spec.topK));
    },
  };
}

/** What is to be factorized how. */
export interface AllocationRequest extends CalibratedForm, SurveyRequest, Pick<MethodRequest, 'targetRatio'> {
  /** Other groups than consecutive ones, of `groupSize` too. */
  readonly groupsOf?: ((layer: CalibrationLayer) => Promise<Partition>) | undefined;
  /** The factors come in blocks of 8 or 4 bits. */
  readonly quantized?: boolean | undefined;
}

/** Of all layers. */
export interface Allocation {
  readonly latentSizes: ReadonlyMap<number, LayerLatentSizes>;
  /** What `groupsOf` gave; empty without it. */
  readonly groups: ReadonlyMap<number, Partition>;
}

/**
 * Spends the parameters that the target leaves over all layers, operators and groups, by a pass over the calibration text
 * that looks at every spectrum. Squared output counts alike in all layers: weighing it by the size of the residual stream
 * gained nothing where it was measured (docs/choosing.md).
 *
 * @throws MolaeError `INVALID_ARGUMENT` for a target that leaves too little.
 */
export async function allocateOverLayers(request: AllocationRequest): Promise<Allocation> {
  const { model, signal } = request;
  const spendings: Spending[] = [];
  const groups = new Map<number, Partition>();
  await survey(request, async (layer) => {
    const experts = layer.block.experts as DenseExperts;
    const own = await request.groupsOf?.(layer);
    if (own) groups.set(layer.layer, own);
    const { groupSize, operators, sharedGateUp } = request;
    const grouping = own ? { groups: own } : { groupSize };
    const options = { ...grouping, operators, sharedGateUp, signal };
    for (const spectrum of await calibratedSpectra(experts, layer, options)) {
      spendings.push(spendingOf(request, layer.layer, spectrum));
    }
  });
  const { hiddenSize, layers } = model.checkpoint.spec;
  const sizes = allocateLatentSizes(spendings, {
    budget: budgetOf(request),
    step: stepFor(hiddenSize, request.quantized),
  });
  const byLayer = new Map<number, LayerLatentSizes>(
    layers.map((layer) => [layer, { gate: [], up: [], down: [] }]),
  );
  for (const [index, { layer, operator, group }] of spendings.entries()) {
    const own = byLayer.get(layer) as LayerLatentSizes;
    own[operator][group] = sizes[index] as number;
    if (request.sharedGateUp && operator === 'gate') own.up[group] = sizes[index] as number;
  }
  return { latentSizes: byLayer, groups };
}

function spendingOf(
  { model, groupSize, sharedGateUp = false }: AllocationRequest,
  layer: number,
  { operator, group, values }: OperatorSpectrum,
): Spending {
  const { hiddenSize: n, intermediateSize: m } = model.checkpoint.spec;
  const stacked = (sharedGateUp && operator === 'gate' ? 2 : 1) * groupSize * m;
  return { layer, operator, group, values: values.subarray(0, Math.min(n, stacked)), cost: stacked + n };
}

/** Parameters that the target leaves for factors. */
function budgetOf({ model, targetRatio, operators = OPERATORS }: AllocationRequest): number {
  const { hiddenSize: n, intermediateSize: m, numExperts, layers } = model.checkpoint.spec;
  const whole = layers.length * numExperts * m * n;
  return Math.floor((1 - targetRatio) * 3 * whole) - (3 - operators.length) * whole;
}

/** Why the target cannot be met with one step of latent size everywhere; nothing where it can. */
export function unreachableReason(request: AllocationRequest): string | undefined {
  const { model, groupSize, operators = OPERATORS, sharedGateUp = false, targetRatio } = request;
  const { hiddenSize: n, intermediateSize: m, numExperts, layers } = model.checkpoint.spec;
  const step = stepFor(n, request.quantized);
  const directions = operators.length * groupSize * m + (operators.length - (sharedGateUp ? 1 : 0)) * n;
  const least = layers.length * (numExperts / groupSize) * directions * Math.min(step, n, groupSize * m);
  const budget = budgetOf(request);
  if (budget >= least) return undefined;
  return `with groups of ${groupSize}, a latent size of ${step} for ${operators.join(', ')} takes ${least} parameters, and a share of ${targetRatio} leaves ${budget}`;
}

/** Latent sizes that kernels like, that end rows with whole blocks where there are some, and fine enough for small models. */
function stepFor(hiddenSize: number, quantized = false): number {
  if (hiddenSize < 1024) return 8;
  return quantized ? BLOCK : 16;
}
