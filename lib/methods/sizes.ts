import { groupProbability } from '../costs/distinct-groups.ts';
import { byteCount } from '../dtype.ts';
import { expected } from '../errors.ts';
import { type DenseExperts, isLatent, type LatentExperts } from '../experts.ts';
import type { GroupRouting } from '../model/routing-statistics.ts';
import { OPERATORS } from '../operators.ts';
import { planConversion } from '../plan/plan-conversion.ts';
import type { Tensor } from '../tensor.ts';
import type { ExpertCosts, MethodRequest } from './method.ts';

/**
 * The planner's k, unless one is given, and the largest r that removes the share asked for. The planner would round r down
 * to what kernels like: in a comparison that would remove more than was asked, and more from some methods than from others.
 */
export function planSizes({ model, targetRatio, groupSize }: MethodRequest): {
  readonly groupSize: number;
  readonly latentSize: number;
} {
  const { spec } = model.checkpoint;
  const plan = planConversion(spec, { targetRatio, ...(groupSize !== undefined && { groupSize }) });
  const { hiddenSize: n, intermediateSize: m } = spec;
  const inGroup = plan.groupSize * m;
  const largest = Math.floor(((1 - targetRatio) * inGroup * n) / (inGroup + n));
  return { groupSize: plan.groupSize, latentSize: Math.min(largest, inGroup, n) };
}

/** How many experts of a layer may stay where whole experts go. */
export function planExperts({ model, targetRatio }: MethodRequest, least: number): number {
  const { numExperts } = model.checkpoint.spec;
  const kept = Math.floor((1 - targetRatio) * numExperts + 1e-9);
  if (kept < least) {
    throw expected(
      `a share that leaves at least ${least} of ${numExperts} experts`,
      'targetRatio',
      targetRatio,
    );
  }
  return kept;
}

/**
 * Of experts as they are stored and run on `topK` of them a token: what several share is stored once.
 *
 * @param routing by default uniform.
 */
export function costsOf(
  experts: DenseExperts | LatentExperts,
  topK: number,
  routing?: GroupRouting,
): ExpertCosts {
  const tensors = new Set<Tensor>();
  for (const operator of OPERATORS) {
    const own = experts[operator];
    for (const tensor of isLatent(own) ? [...own.a, ...own.b] : own) tensors.add(tensor);
  }
  let expertParameters = 0;
  let expertBytes = 0;
  for (const { length, byteLength } of tensors) {
    expertParameters += length;
    expertBytes += byteLength;
  }
  return { expertParameters, expertBytes, flopsPerToken: flopsPerToken(experts, topK, routing) };
}

/** FLOPs of a token: of `topK` experts, and of the latent spaces of the groups that they fall into, each once. */
function flopsPerToken(
  experts: DenseExperts | LatentExperts,
  topK: number,
  routing: GroupRouting | undefined,
): number {
  const { numExperts, hiddenSize: n, intermediateSize: m } = experts;
  let multiplyAdds = 0;
  const shared = new Set<Tensor>();
  for (const operator of OPERATORS) {
    const own = experts[operator];
    if (!isLatent(own)) {
      multiplyAdds += topK * m * n;
      continue;
    }
    for (const [group, a] of own.a.entries()) {
      const size = a.shape[0] as number;
      const b = own.b[group] as Tensor;
      const used = routing?.expertProbabilities[group]?.reduce((sum, own) => sum + own, 0);
      multiplyAdds += ((used ?? (topK / numExperts) * size) * a.length) / size;
      const probability = routing?.groupProbabilities[group] ?? groupProbability(numExperts, size, topK);
      if (!shared.has(b)) multiplyAdds += probability * b.length;
      shared.add(b);
    }
  }
  return 2 * multiplyAdds;
}

/** What this many elements take in the experts' own dtype. */
export function storedBytes({ gate }: DenseExperts, elements: number): number {
  return byteCount((gate[0] as Tensor).dtype, [elements]);
}
