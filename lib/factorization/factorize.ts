import type { WeightDType } from '../dtype.ts';
import { checkObject, expected } from '../errors.ts';
import { DenseExperts, type LatentExperts } from '../experts.ts';
import type { Tensor } from '../tensor.ts';
import { type FactorStorage, GatheredFactors } from './factors.ts';
import { type GroupedWork, progressCounter } from './grouped-work.ts';
import { resolveGroups } from './groups.ts';
import { checkSpec, type FactorizationSpec } from './spec.ts';
import { factorizeGroup, type GroupSource } from './stacked-group.ts';

/** How `factorizeExperts` factorizes the experts of a layer. */
export interface FactorizeOptions extends FactorizationSpec, GroupedWork, FactorStorage {}

/**
 * Factorizes a DenseExperts into LatentExperts by the paper's two steps (arXiv 2503.23100): optional rank reduction of
 * each expert, then per group and operator the best shared B, and each A_i as the projection on it.
 *
 * @throws MolaeError `INVALID_ARGUMENT` for a k that does not divide N, an r out of range, or f64 experts whose squares leave
 * the range of f64; `NON_FINITE` naming operator, expert and position; `ABORTED`.
 */
export async function factorizeExperts(
  experts: DenseExperts,
  options: FactorizeOptions,
): Promise<LatentExperts> {
  if (!(experts instanceof DenseExperts)) throw expected('DenseExperts', 'experts', experts);
  checkObject(options, 'options');
  const groups = resolveGroups(options, experts.numExperts);
  const spec = checkSpec(options, experts, groups);
  const progress = progressCounter(options.onProgress, spec.operators.length * experts.numExperts * 2);
  const gathered = new GatheredFactors();
  try {
    for (const [group, members] of groups.entries()) {
      const source: GroupSource = {
        device: experts.device,
        group,
        members,
        hiddenSize: experts.hiddenSize,
        intermediateSize: experts.intermediateSize,
        dtype: (operator) => options.dtype ?? (experts[operator][0]?.dtype as WeightDType),
        load: async (operator, index) => experts[operator][members[index] as number] as Tensor,
        release: () => {},
        step: progress,
        signal: options.signal,
      };
      for await (const factors of factorizeGroup(source, spec)) gathered.add(factors);
    }
    return gathered.experts(experts, groups);
  } catch (error) {
    gathered.dispose();
    throw error;
  }
}
