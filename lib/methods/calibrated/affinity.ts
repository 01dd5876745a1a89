import type { Partition } from '../../factorization/groups.ts';
import { AffinityGrouping } from '../grouping/grouping.ts';
import type { Method, MethodRequest } from '../method.ts';
import { allocateOverLayers, type LayerLatentSizes } from './allocation.ts';
import { calibrated, calibratedCompressor } from './calibrated.ts';
import { searchedGroupSizes } from './search.ts';

/** The calibrated method with experts grouped by what they have in common, instead of by their numbers. */
export const calibratedAffinity: Method = {
  ...calibrated,
  name: 'calibrated-affinity',
  summary: 'calibrated, experts grouped by how much of their inputs they look at together',
  check: (request) => calibrated.check({ ...request, groupSize: groupSizeOf(request) }),
  async prepare(request) {
    const groupSize = groupSizeOf(request);
    const grouping = new AffinityGrouping({ signal: request.signal });
    const { groups, latentSizes } = await allocateOverLayers({
      ...request,
      groupSize,
      groupsOf: (layer) => grouping.groups(layer, groupSize),
    });
    return calibratedCompressor(
      request,
      { groupSize, groupsOf: (layer) => groups.get(layer) as Partition },
      (layer) => latentSizes.get(layer) as LayerLatentSizes,
    );
  },
};

/** About √N where nothing is said: neither one expert alone nor all together leave anything to choose. */
function groupSizeOf({ model, groupSize }: MethodRequest): number {
  const sizes = searchedGroupSizes(model.checkpoint.spec);
  return groupSize ?? (sizes[Math.floor(sizes.length / 2)] as number);
}
