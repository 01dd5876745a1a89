import { consecutiveGroups, type Partition } from '../../factorization/groups.ts';

/**
 * Groups of k experts with much affinity within them. Not the best of all partitions (which is hard to find), but no exchange
 * of two experts makes it better, and consecutive groups have no more.
 *
 * Two partitions are improved by exchanges as long as that adds affinity, and the better one is taken: consecutive groups, and
 * those begun with the closest pair that is left and filled up with the expert that adds most.
 *
 * @param affinity symmetric, [N][N]; the diagonal does not count.
 * @throws RangeError where k does not divide N.
 */
export function affinityGroups(affinity: readonly ArrayLike<number>[], groupSize: number): number[][] {
  const count = affinity.length;
  if (count % groupSize !== 0) throw new RangeError(`${groupSize} does not divide ${count}`);
  const [greedy, kept] = [closestFirst(affinity, groupSize), consecutiveGroups(count, groupSize)];
  for (const groups of [greedy, kept]) while (exchangeOnce(groups, affinity));
  const better = affinityWithin(affinity, greedy) > affinityWithin(affinity, kept) ? greedy : kept;
  return better
    .map((group) => group.sort((a, b) => a - b))
    .sort((a, b) => (a[0] as number) - (b[0] as number));
}

/** The affinity of all pairs that share a group. */
export function affinityWithin(affinity: readonly ArrayLike<number>[], groups: Partition): number {
  let sum = 0;
  for (const group of groups) for (const expert of group) sum += toGroup(affinity, expert, group) / 2;
  return sum;
}

function between(affinity: readonly ArrayLike<number>[], a: number, b: number): number {
  return (affinity[a] as ArrayLike<number>)[b] as number;
}

/** Of an expert with the others of a group. */
function toGroup(affinity: readonly ArrayLike<number>[], expert: number, group: readonly number[]): number {
  let sum = 0;
  for (const member of group) if (member !== expert) sum += between(affinity, expert, member);
  return sum;
}

function closestFirst(affinity: readonly ArrayLike<number>[], groupSize: number): number[][] {
  const left = new Set(affinity.keys());
  const groups: number[][] = [];
  while (left.size > 0) {
    const group = groupSize === 1 ? [] : closestPair(affinity, left);
    for (const expert of group) left.delete(expert);
    while (group.length < groupSize) {
      const next = [...left].reduce((a, b) =>
        toGroup(affinity, b, group) > toGroup(affinity, a, group) ? b : a,
      );
      left.delete(next);
      group.push(next);
    }
    groups.push(group);
  }
  return groups;
}

function closestPair(affinity: readonly ArrayLike<number>[], left: ReadonlySet<number>): number[] {
  let best: number[] = [];
  let most = Number.NEGATIVE_INFINITY;
  for (const i of left) {
    for (const j of left) {
      if (j <= i || between(affinity, i, j) <= most) continue;
      most = between(affinity, i, j);
      best = [i, j];
    }
  }
  return best;
}

/** What counts as more affinity, so that rounding does not exchange for ever. */
const GAIN = 1e-9;

function exchangeOnce(groups: readonly number[][], affinity: readonly ArrayLike<number>[]): boolean {
  for (const [g, group] of groups.entries()) {
    for (const other of groups.slice(g + 1)) {
      for (const [i, a] of group.entries()) {
        for (const [j, b] of other.entries()) {
          const now = toGroup(affinity, a, group) + toGroup(affinity, b, other);
          const then =
            toGroup(affinity, a, other) + toGroup(affinity, b, group) - 2 * between(affinity, a, b);
          if (then <= now + GAIN) continue;
          group[i] = b;
          other[j] = a;
          return true;
        }
      }
    }
  }
  return false;
}
