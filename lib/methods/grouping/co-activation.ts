import { routingStatistics } from '../../model/routing-statistics.ts';
import type { Routing } from '../../routing.ts';

/**
 * Row i, column j: the share of tokens that are routed to both of two experts; 0 on the diagonal.
 *
 * A plain share, not one of the tokens that reach either (Jaccard's): summed over the pairs within the groups it is by how many
 * distinct groups a token needs less than experts (for pairs exactly; where a token reaches c of a larger group it saves
 * c − 1, and c(c − 1)/2 pairs count). So it weighs pairs by the work that they save. Jaccard's would group
 * rare experts that always fire together as gladly as frequent ones, which saves next to nothing.
 */
export async function coActivationShares(routing: Routing, numExperts: number): Promise<Float64Array[]> {
  const { tokens, coActivation } = await routingStatistics(routing, numExperts);
  return Array.from({ length: numExperts }, (_, expert) =>
    coActivation
      .subarray(expert * numExperts, (expert + 1) * numExperts)
      .map((count) => (tokens > 0 ? count / tokens : 0)),
  );
}
