import type { MoeSpec } from '../checkpoint/family.ts';
import type { CostOptions, Factorization } from '../costs/layer-costs.ts';
import type { LayerSizes } from '../costs/sizes.ts';
import { checkObject, expected } from '../errors.ts';
import { checkGroupSize } from '../factorization/groups.ts';
import { checkLatentSize, checkOperators, largestLatentSize } from '../factorization/spec.ts';
import type { Operator } from '../operators.ts';

/** What `planConversion` is to plan: sizes that are left open are completed. */
export interface PlanOptions extends CostOptions {
  /** k, a divisor of N. Without it the planner chooses, and says why in `reason`. */
  readonly groupSize?: number | undefined;
  /**
   * r, the same for every factored operator: 1 to min(n, k·m), or to min(n, 2·k·m) where a shared gate and up are all that is
   * factored. Not together with `targetRatio`.
   */
  readonly latentSize?: number | undefined;
  /** The share of the routed experts' parameters to remove at least, between 0 and 1. */
  readonly targetRatio?: number | undefined;
  /** What to factor. Default: gate, up and down. */
  readonly operators?: readonly Operator[] | undefined;
  /** Gate and up share one B. Default false. */
  readonly sharedGateUp?: boolean | undefined;
  /** Parameters other than those of the routed experts, to compare whole models; a checkpoint's
   * `parameters − expertParameters`. */
  readonly otherParameters?: number | undefined;
}

/** Options after their checks. */
export interface PlanRequest {
  readonly groupSize: number | undefined;
  readonly latentSize: number | undefined;
  readonly targetRatio: number | undefined;
  readonly operators: readonly Operator[];
  readonly sharedGateUp: boolean;
}

export function checkPlanOptions(spec: MoeSpec, options: PlanOptions): PlanRequest {
  checkObject(options, 'options');
  const { groupSize, latentSize, targetRatio, sharedGateUp = false } = options;
  const operators = checkOperators(options.operators, sharedGateUp);
  if (groupSize !== undefined) checkGroupSize(spec.numExperts, groupSize);
  if (options.groupProbabilities !== undefined && groupSize === undefined) {
    throw expected('a group size beside groupProbabilities', 'groupSize', groupSize);
  }
  checkOtherParameters(options.otherParameters);
  if (latentSize !== undefined && targetRatio !== undefined) {
    throw expected('either latentSize or targetRatio, not both,', 'targetRatio', targetRatio);
  }
  if (targetRatio !== undefined && !(typeof targetRatio === 'number' && targetRatio > 0 && targetRatio < 1)) {
    throw expected('a number between 0 and 1, both excluded,', 'targetRatio', targetRatio);
  }
  if (latentSize !== undefined) {
    const largest = largestCommonSize(spec, { operators, sharedGateUp }, groupSize ?? spec.numExperts);
    checkLatentSize(latentSize, largest, 'latentSize');
  }
  return { groupSize, latentSize, targetRatio, operators, sharedGateUp };
}

function checkOtherParameters(value: unknown): void {
  if (value === undefined || (typeof value === 'number' && value >= 0 && Number.isFinite(value))) return;
  throw expected('a non-negative number', 'otherParameters', value);
}

/** The largest r that every factored operator can have. */
export function largestCommonSize(
  sizes: LayerSizes,
  { operators, sharedGateUp }: Pick<PlanRequest, 'operators' | 'sharedGateUp'>,
  groupSize: number,
): number {
  return Math.min(
    ...operators.map((operator) => largestLatentSize(sizes, groupSize, operator, sharedGateUp)),
  );
}

/** The layer with experts in groups of k, all in latent spaces of r. */
export function factorization(
  spec: MoeSpec,
  request: PlanRequest,
  groupSize: number,
  latentSize: number,
): Factorization {
  return {
    groupSizes: new Array<number>(spec.numExperts / groupSize).fill(groupSize),
    latentSizes: Object.fromEntries(request.operators.map((operator) => [operator, latentSize])),
    sharedGateUp: request.sharedGateUp,
  };
}
