import { checkObject, expected } from '../errors.ts';
import { DenseExperts, type LatentExperts } from '../experts.ts';
import type { Operator } from '../operators.ts';
import { checkTensor } from '../tensor.ts';
import {
  type CalibratedSteps,
  calibratedPasses,
  factorizeCalibratedGroup,
  groupSpectra,
  type LayerInputs,
  type OperatorSpectrum,
} from './calibrated-group.ts';
import { type FactorStorage, GatheredFactors } from './factors.ts';
import { type GroupedWork, progressCounter } from './grouped-work.ts';
import { type Partition, resolveGroups } from './groups.ts';
import {
  checkLatentSize,
  checkOperators,
  checkSharedLatentSize,
  factoredOperators,
  largestLatentSize,
} from './spec.ts';

/** Latent sizes of every group, by operator; operators left out stay dense. */
export type GroupLatentSizes = Readonly<Partial<Record<Operator, readonly number[]>>>;

/** How the experts of a layer are grouped, and the steps that are taken with each group. */
export interface CalibratedGroups extends CalibratedSteps, GroupedWork {
  /** One B for gate and up. */
  readonly sharedGateUp?: boolean | undefined;
}

/** How `factorizeCalibrated` factorizes the experts of a layer. */
export interface CalibratedOptions extends CalibratedGroups, FactorStorage {
  /** r, for all operators, for each, or for each operator of each group. Operators without one stay dense. */
  readonly latentSize: number | Readonly<Partial<Record<Operator, number | readonly number[]>>>;
  /** The operators to factorize; by default those that have a latent size. The others stay dense. */
  readonly operators?: readonly Operator[] | undefined;
}

/**
 * Factorizes experts so that their outputs on calibration text suffer least, in closed form: see `CalibratedGroup` in
 * native/core/factorization for the mathematics. Bases come from the eigenvectors of the whitened, output-weighted stack (gate, up) and
 * of the group's routed output (down); factors are fitted to each expert's own inputs.
 *
 * An expert that no token reached has no say in its group's bases; a group that none reached is factorized as by
 * `factorizeExperts`.
 *
 * @throws MolaeError `INVALID_ARGUMENT` for a k that does not divide N or an r out of range, `SHAPE_MISMATCH` for inputs
 * of another layer, `NON_FINITE` naming operator, expert and position, `DEVICE_UNAVAILABLE` on devices that cannot
 * do this (yet all but the CPU), `ABORTED`.
 */
export async function factorizeCalibrated(
  experts: DenseExperts,
  inputs: LayerInputs,
  options: CalibratedOptions,
): Promise<LatentExperts> {
  checkArguments(experts, inputs, options);
  const groups = resolveGroups(options, experts.numExperts);
  const latentSizes = checkLatentSizes(options, experts, groups);
  const progress = progressCounter(options.onProgress, calibratedPasses(options) * experts.numExperts);
  const gathered = new GatheredFactors();
  try {
    for (const [group, members] of groups.entries()) {
      const sizes = (operator: Operator) => latentSizes[operator]?.[group];
      const source = { experts, inputs, group, members, sizes };
      gathered.add(await factorizeCalibratedGroup(source, options, progress));
    }
    return gathered.experts(experts, groups);
  } catch (error) {
    gathered.dispose();
    throw error;
  }
}

/** The spectra of all groups of a layer: what `allocateLatentSizes` spends a budget by. Half the work of factorizing. */
export async function calibratedSpectra(
  experts: DenseExperts,
  inputs: LayerInputs,
  options: CalibratedGroups & { readonly operators?: readonly Operator[] | undefined },
): Promise<OperatorSpectrum[]> {
  checkArguments(experts, inputs, options);
  const groups = resolveGroups(options, experts.numExperts);
  const operators = checkOperators(options.operators, options.sharedGateUp);
  const progress = progressCounter(options.onProgress, experts.numExperts);
  const spectra: OperatorSpectrum[] = [];
  for (const [group, members] of groups.entries()) {
    spectra.push(...(await groupSpectra({ experts, inputs, group, members }, operators, options, progress)));
  }
  return spectra;
}

function checkLatentSizes(
  options: CalibratedOptions,
  experts: DenseExperts,
  groups: Partition,
): GroupLatentSizes {
  const { latentSize, sharedGateUp = false } = options;
  const sizes: Partial<Record<Operator, readonly number[]>> = {};
  for (const operator of factoredOperators(options)) {
    const own = typeof latentSize === 'object' ? latentSize?.[operator] : latentSize;
    const list = Array.isArray(own) ? (own as readonly number[]) : groups.map(() => own as number);
    if (list.length !== groups.length) {
      throw expected(`${groups.length} latent sizes, one for each group`, `latentSize of ${operator}`, own);
    }
    for (const [group, members] of groups.entries()) {
      const largest = largestLatentSize(experts, members.length, operator, sharedGateUp);
      checkLatentSize(list[group], largest, `latentSize of ${operator}, group ${group}`);
    }
    sizes[operator] = list;
  }
  if (sharedGateUp) checkSharedLatentSize(sizes.gate, sizes.up);
  return sizes;
}

function checkArguments(experts: DenseExperts, inputs: LayerInputs, options: object): void {
  if (!(experts instanceof DenseExperts)) throw expected('DenseExperts', 'experts', experts);
  checkObject(inputs, 'inputs');
  checkTensor(inputs.x, 'inputs.x');
  checkObject(inputs.routing, 'inputs.routing');
  checkTensor(inputs.routing.ids, 'inputs.routing.ids');
  checkTensor(inputs.routing.weights, 'inputs.routing.weights');
  checkObject(options, 'options');
}
