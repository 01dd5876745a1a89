import { expected, MolaeError } from '../errors.ts';

/** Groups of experts; every expert of a layer is in one of them. */
export type Partition = readonly (readonly number[])[];

/** The divisors of N, ascending. */
export function divisors(numExperts: number): number[] {
  const small: number[] = [];
  const large: number[] = [];
  for (let d = 1; d * d <= numExperts; d++) {
    if (numExperts % d !== 0) continue;
    small.push(d);
    if (d * d !== numExperts) large.unshift(numExperts / d);
  }
  return [...small, ...large];
}

/** @throws MolaeError `INVALID_ARGUMENT` for a k that does not divide N. */
export function checkGroupSize(numExperts: number, groupSize: unknown): asserts groupSize is number {
  const k = groupSize as number;
  if (Number.isSafeInteger(k) && k > 0 && numExperts % k === 0) return;
  const choices = divisors(numExperts).join(', ');
  throw expected(`a divisor of the ${numExperts} experts (${choices})`, 'groupSize', groupSize);
}

/** 0…k−1, k…2k−1, … */
export function consecutiveGroups(numExperts: number, groupSize: number): number[][] {
  return Array.from({ length: numExperts / groupSize }, (_, group) =>
    Array.from({ length: groupSize }, (_, i) => group * groupSize + i),
  );
}

/** Consecutive groups of `groupSize`, or the explicit groups, checked to be a partition of the experts. */
export function resolveGroups(
  { groupSize, groups }: { readonly groupSize?: number | undefined; readonly groups?: Partition | undefined },
  numExperts: number,
): Partition {
  if (groups !== undefined && groupSize !== undefined) {
    throw new MolaeError('INVALID_ARGUMENT', 'Give either groupSize or groups, not both');
  }
  if (groups !== undefined) return checkPartition(groups, numExperts);
  checkGroupSize(numExperts, groupSize);
  return consecutiveGroups(numExperts, groupSize);
}

/** Bounded before they are looked through: a sparse array may have billions of items. */
function checkPartition(groups: Partition, numExperts: number): Partition {
  const isGroup = (group: unknown) => Array.isArray(group) && group.length > 0 && group.length <= numExperts;
  if (!Array.isArray(groups) || groups.length > numExperts || !groups.every(isGroup)) {
    throw expected('an array of non-empty arrays', 'groups', groups);
  }
  const members = groups.flat();
  const wanted = new Set(Array.from({ length: numExperts }, (_, i) => i));
  if (members.length !== numExperts || !members.every((expert) => wanted.delete(expert))) {
    throw new MolaeError('INVALID_ARGUMENT', `groups must name each of the ${numExperts} experts once`);
  }
  return groups;
}
