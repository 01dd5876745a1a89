import { BLOCK } from '../../dtype.ts';
import { calibratedSpectra } from '../../factorization/calibrated.ts';
import type { OperatorSpectrum } from '../../factorization/calibrated-group.ts';
import type { Partition } from '../../factorization/groups.ts';
import { allocateLatentSizes, type Spending } from '../../factorization/latent-sizes.ts';
import { largestLatentSize } from '../../factorization/spec.ts';
import type { CalibrationLayer } from '../../model/calibration-layer.ts';
import { OPERATORS, type Operator } from '../../operators.ts';
import { denseExperts } from '../experts.ts';
import type { MethodRequest } from '../method.ts';
import type { CalibratedForm } from './form.ts';
import { type SurveyRequest, survey } from './survey.ts';

/** Latent sizes of the groups of a layer. */
export type LayerLatentSizes = Record<Operator, number[]>;

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
    const experts = denseExperts(layer);
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
  const largest = largestLatentSize(model.checkpoint.spec, groupSize, operator, sharedGateUp);
  return { layer, operator, group, values: values.subarray(0, largest), cost: stacked + n };
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
export function stepFor(hiddenSize: number, quantized = false): number {
  if (hiddenSize < 1024) return 8;
  return quantized ? BLOCK : 16;
}
