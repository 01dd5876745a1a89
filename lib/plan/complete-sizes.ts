import type { MoeSpec } from '../checkpoint/family.ts';
import { layerCosts } from '../costs/layer-costs.ts';
import { MolaeError } from '../errors.ts';
import { divisors } from '../factorization/groups.ts';
import { checkLatentSize } from '../factorization/spec.ts';
import { factorization, largestCommonSize, type PlanRequest } from './request.ts';

/** The sizes of a conversion. */
export interface CompleteSizes {
  readonly groupSize: number;
  readonly latentSize: number;
  /** How they came about, in a sentence for people. */
  readonly reason: string;
}

/** Completes the sizes that a request leaves open. */
export function completeSizes(spec: MoeSpec, request: PlanRequest): CompleteSizes {
  const { groupSize, targetRatio } = request;
  if (targetRatio !== undefined) {
    return groupSize === undefined
      ? chooseForRatio(spec, request, targetRatio)
      : sizesForRatio(spec, request, groupSize, targetRatio);
  }
  const latentSize = request.latentSize ?? Math.min(spec.hiddenSize, spec.intermediateSize);
  const source =
    request.latentSize === undefined ? 'latent size r = min(m, n), as in the paper' : 'latent size as given';
  if (groupSize === undefined) return chooseForLatentSize(spec, request, latentSize, source);
  checkLatentSize(latentSize, largestCommonSize(spec, request, groupSize), 'latentSize');
  return { groupSize, latentSize, reason: `Group size as given; ${source}.` };
}

function sizesForRatio(
  spec: MoeSpec,
  request: PlanRequest,
  groupSize: number,
  targetRatio: number,
): CompleteSizes {
  const latentSize = latentSizeForRatio(spec, request, groupSize, targetRatio);
  if (latentSize === undefined) throw impossibleRatio(spec, request, groupSize, targetRatio);
  return { groupSize, latentSize, reason: `Group size as given; ${ratioReason(latentSize, targetRatio)}.` };
}

/** Below this share of the best retention, a candidate counts as worse and not as a tie. */
const RETENTION_TOLERANCE = 0.95;

/**
 * The group size for a given share of parameters to remove. For each divisor k of N from 2 on the budget fixes the
 * largest r, and r / min(n, k·m) (2·k·m for a shared gate and up alone) is the share of the stacked experts' dimensions that survives: a measure
 * of what unstructured experts, the worst case, would keep. Of the k within 5% of the best, the one with the fewest
 * FLOPs wins, then the smaller. Weights may know better (clustered experts favour small groups); this rule sees sizes only.
 * On the trained tiny-qwen2-moe, ratios 0.1 to 0.75, its k had the least optimal error of all k or up to 9% more.
 */
function chooseForRatio(spec: MoeSpec, request: PlanRequest, targetRatio: number): CompleteSizes {
  const candidates = shareableGroupSizes(spec.numExperts).flatMap((groupSize) => {
    const latentSize = latentSizeForRatio(spec, request, groupSize, targetRatio);
    if (latentSize === undefined) return [];
    const retained = latentSize / largestCommonSize(spec, request, groupSize);
    const flops = layerCosts(spec, factorization(spec, request, groupSize, latentSize)).flopsPerToken;
    return [{ groupSize, latentSize, retained, flops }];
  });
  if (candidates.length === 0) throw impossibleRatio(spec, request, spec.numExperts, targetRatio);
  const best = Math.max(...candidates.map(({ retained }) => retained));
  const close = candidates.filter(({ retained }) => retained >= RETENTION_TOLERANCE * best);
  const chosen = close.reduce((a, b) => (b.flops.latent < a.flops.latent ? b : a));
  const { groupSize, latentSize, retained, flops } = chosen;
  return {
    groupSize,
    latentSize,
    reason:
      `Chose group size ${groupSize}: of the ${candidates.length} divisors of ${spec.numExperts} that can remove ${percent(targetRatio)}, ` +
      `${close.length === 1 ? 'it keeps the most dimensions' : `${close.length} keep about as many dimensions as the best, and of those it computes least`} ` +
      `(${percent(retained)} of ${largestCommonSize(spec, request, groupSize)}; ` +
      `${flops.ratio.toFixed(2)} times the dense FLOPs); ${ratioReason(latentSize, targetRatio)}.`,
  };
}

/**
 * The group size for a given r. With r fixed a larger group stores and computes less, and errs more. So the
 * smallest k from 2 on that neither stores nor computes more than the dense layer; else the smallest that
 * stores less; else, when nothing does, all experts in one group.
 */
function chooseForLatentSize(
  spec: MoeSpec,
  request: PlanRequest,
  latentSize: number,
  source: string,
): CompleteSizes {
  const { numExperts } = spec;
  const fitting = shareableGroupSizes(numExperts)
    .filter((groupSize) => latentSize <= largestCommonSize(spec, request, groupSize))
    .map((groupSize) => ({
      groupSize,
      ...layerCosts(spec, factorization(spec, request, groupSize, latentSize)),
    }));
  const smaller = fitting.filter((costs) => costs.expertParameters.ratio < 1);
  const faster = smaller.find((costs) => costs.flopsPerToken.ratio <= 1);
  const pick = (groupSize: number, why: string): CompleteSizes => ({
    groupSize,
    latentSize,
    reason: `Chose group size ${groupSize}: ${why}; ${source}.`,
  });
  if (faster !== undefined) {
    return pick(
      faster.groupSize,
      'the smallest, so the most exact, that stores less and computes no more than the dense layer',
    );
  }
  if (smaller[0] !== undefined) {
    return pick(
      smaller[0].groupSize,
      'the smallest, so the most exact, that stores less; no group size computes less too',
    );
  }
  return pick(
    numExperts,
    'no group size stores less than the dense layer at this latent size, so the one that adds least',
  );
}

function ratioReason(latentSize: number, targetRatio: number): string {
  const rounding = latentSize % 16 === 0 ? ', a multiple of 16,' : '';
  return `latent size ${latentSize} is the largest${rounding} that removes at least ${percent(targetRatio)} of the routed experts' parameters`;
}

/** The largest r, a multiple of 16 where it reaches 16, that removes at least the share; undefined when none does. */
function latentSizeForRatio(
  spec: MoeSpec,
  request: PlanRequest,
  k: number,
  targetRatio: number,
): number | undefined {
  const { hiddenSize: n, intermediateSize: m, numExperts: N } = spec;
  const { operators, sharedGateUp } = request;
  const dense = 3 * N * m * n;
  const kept = (3 - operators.length) * N * m * n;
  const perRank = operators.length * N * m + (operators.length - (sharedGateUp ? 1 : 0)) * (N / k) * n;
  const removesEnough = (r: number) => {
    const latent = kept + perRank * r;
    return latent <= (1 - targetRatio) * dense && 1 - latent / dense >= targetRatio;
  };
  const estimate = Math.floor(((1 - targetRatio) * dense - kept) / perRank);
  const largest = Math.min(estimate, largestCommonSize(spec, request, k));
  const rounded = largest >= 16 ? largest - (largest % 16) : largest;
  // An exact hit may fail the caller's own check in floating point: then one step less.
  const latentSize = removesEnough(rounded) ? rounded : rounded - (rounded > 16 ? 16 : 1);
  return latentSize >= 1 && removesEnough(latentSize) ? latentSize : undefined;
}

function impossibleRatio(
  spec: MoeSpec,
  request: PlanRequest,
  groupSize: number,
  targetRatio: number,
): MolaeError {
  const { expertParameters } = layerCosts(spec, factorization(spec, request, groupSize, 1));
  return new MolaeError(
    'INVALID_ARGUMENT',
    `A targetRatio of ${targetRatio} cannot be reached with group size ${groupSize} and operators ` +
      `${request.operators.join(', ')}: even latent size 1 removes only ${percent(1 - expertParameters.ratio)}`,
  );
}

/** The group sizes in which something is shared: from 2 on, unless there is one expert only. */
function shareableGroupSizes(numExperts: number): number[] {
  return numExperts === 1 ? [1] : divisors(numExperts).filter((k) => k > 1);
}

function percent(share: number): string {
  return `${Number((100 * share).toFixed(2))}%`;
}
