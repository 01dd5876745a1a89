import type { Partition } from '../factorization/groups.ts';
import type { Routing } from '../routing.ts';

/** What calibration text says of the routing of a layer. */
export interface RoutingStatistics {
  readonly tokens: number;
  /** How often each expert was chosen. */
  readonly expertCounts: Float64Array;
  /** [N, N]: how often two experts were chosen for the same token. */
  readonly coActivation: Float64Array;
}

/** Counts choices and pairs of choices. */
export async function routingStatistics(routing: Routing, numExperts: number): Promise<RoutingStatistics> {
  const { ids } = routing;
  const [tokens, topK] = ids.shape as [number, number];
  const chosen = await ids.read();
  const coActivation = new Float64Array(numExperts * numExperts);
  for (let t = 0; t < tokens; t++) {
    const experts = chosen.subarray(t * topK, (t + 1) * topK);
    for (const a of experts) {
      for (const b of experts) if (a !== b) (coActivation[a * numExperts + b] as number) += 1;
    }
  }
  return { tokens, expertCounts: await expertCounts(routing, numExperts), coActivation };
}

/** @internal How often each expert was chosen. */
export async function expertCounts({ ids }: Routing, numExperts: number): Promise<Float64Array> {
  const counts = new Float64Array(numExperts);
  for (const expert of await ids.read()) (counts[expert] as number) += 1;
  return counts;
}

/** How often tokens use the groups and experts of a layer: the measured probabilities of its costs. */
export interface GroupRouting {
  readonly groupProbabilities: readonly number[];
  /** Of each group's experts. */
  readonly expertProbabilities: readonly (readonly number[])[];
}

/** Counts how often tokens use groups, and experts in them. */
export async function groupRouting(routing: Routing, groups: Partition): Promise<GroupRouting> {
  const tokens = routing.ids.shape[0] as number;
  const numExperts = groups.reduce((sum, group) => sum + group.length, 0);
  const counts = await expertCounts(routing, numExperts);
  const share = (expert: number) => (tokens > 0 ? (counts[expert] as number) / tokens : 0);
  return {
    groupProbabilities: await groupProbabilities(routing, groups),
    expertProbabilities: groups.map((group) => group.map(share)),
  };
}

/** The measured probability, for each group, that a token uses it: `groupProbabilities` of a plan. */
export async function groupProbabilities({ ids }: Routing, groups: Partition): Promise<number[]> {
  const [tokens, topK] = ids.shape as [number, number];
  const chosen = await ids.read();
  const groupOf: (number | undefined)[] = [];
  for (const [g, group] of groups.entries()) for (const expert of group) groupOf[expert] = g;
  const uses = new Float64Array(groups.length);
  /** The last token that used a group. */
  const lastOf = new Int32Array(groups.length).fill(-1);
  for (let slot = 0; slot < tokens * topK; slot++) {
    const group = groupOf[chosen[slot] as number];
    const token = Math.floor(slot / topK);
    if (group === undefined || lastOf[group] === token) continue;
    lastOf[group] = token;
    (uses[group] as number) += 1;
  }
  return Array.from(uses, (count) => (tokens > 0 ? count / tokens : 0));
}
