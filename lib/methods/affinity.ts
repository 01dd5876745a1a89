import { factorizeCalibrated } from '../calibrated.ts';
import type { DenseExperts, LatentExperts, LatentOperator } from '../experts.ts';
import { gemm, svd } from '../linalg.ts';
import type { CalibrationLayer } from '../model/calibration.ts';
import type { Tensor } from '../tensor.ts';
import { allocateOverLayers, calibrated, calibratedCompressor, type LayerLatentSizes } from './calibrated.ts';
import { gatherRows } from './expert-tokens.ts';
import type { Method, MethodRequest } from './method.ts';
import { searchedGroupSizes } from './search.ts';

type Groups = readonly (readonly number[])[];

/** The calibrated method with experts grouped by what they have in common, instead of by their numbers. */
export const calibratedAffinity: Method = {
  ...calibrated,
  name: 'calibrated-affinity',
  summary: 'calibrated, experts grouped by how much of their inputs they look at together',
  check: (request) => calibrated.check({ ...request, groupSize: groupSizeOf(request) }),
  async prepare(request) {
    const groupSize = groupSizeOf(request);
    const groups = new Map<number, Groups>();
    const sizes = await allocateOverLayers({
      ...request,
      groupSize,
      async groupsOf(layer) {
        const own = affinityGroups(await rowSpaceOverlaps(layer), groupSize);
        groups.set(layer.layer, own);
        return own;
      },
    });
    return calibratedCompressor(
      request,
      { groupSize, groupsOf: (layer) => groups.get(layer) as Groups },
      (layer) => sizes.get(layer) as LayerLatentSizes,
    );
  },
};

/** About √N where nothing is said: neither one expert alone nor all together leave anything to choose. */
function groupSizeOf({ model, groupSize }: MethodRequest): number {
  const sizes = searchedGroupSizes(model.checkpoint.spec);
  return groupSize ?? (sizes[Math.floor(sizes.length / 2)] as number);
}

/** Of an expert's directions, those that count: this share of its width. */
const LEADING = 1 / 4;
/** Inputs that row spaces are compared on, for each direction of them. */
const TOKENS_PER_DIRECTION = 16;

/**
 * Row i, column j: how much two experts' gate and up look at the same of the layer's inputs, between 0 and 1. Compared are
 * their leading directions, in the metric of the inputs X: the rows of B span there what the columns of X Bᵀ do.
 */
export async function rowSpaceOverlaps(layer: CalibrationLayer): Promise<Float64Array[]> {
  const experts = layer.block.experts as DenseExperts;
  const { numExperts, intermediateSize, hiddenSize } = experts;
  const size = Math.max(1, Math.floor(LEADING * Math.min(intermediateSize, hiddenSize)));
  const latentSize = { gate: size, up: size };
  using alone = await factorizeCalibrated(experts, layer, { groupSize: 1, latentSize, dtype: 'f32' });
  const tokens = layer.x.shape[0] as number;
  const wanted = Math.min(tokens, TOKENS_PER_DIRECTION * size);
  using x = await gatherRows(
    layer.x,
    Int32Array.from({ length: wanted }, (_, i) => Math.floor((i * tokens) / wanted)),
  );
  const overlaps = Array.from({ length: numExperts }, () => new Float64Array(numExperts));
  for (const operator of ['gate', 'up'] as const) await addOverlaps(alone, operator, x, overlaps);
  return overlaps;
}

/** Half of the mean squared cosine between the spaces of two experts is one operator's part. */
async function addOverlaps(
  experts: LatentExperts,
  operator: 'gate' | 'up',
  x: Tensor<'f32'>,
  overlaps: readonly Float64Array[],
): Promise<void> {
  const { b } = experts[operator] as LatentOperator;
  const spaces: Tensor[] = [];
  try {
    for (const basis of b) spaces.push(await columnSpace(x, basis));
    for (const [i, one] of spaces.entries()) {
      for (const [j, other] of spaces.entries()) {
        using cosines = await gemm(one, other, { transposeA: true });
        const squares = (await cosines.toFloat32()).reduce((sum, cosine) => sum + cosine * cosine, 0);
        const size = Math.min(one.shape[1] as number, other.shape[1] as number);
        (overlaps[i] as Float64Array)[j] = ((overlaps[i] as Float64Array)[j] as number) + squares / size / 2;
      }
    }
  } finally {
    for (const space of spaces) space.dispose();
  }
}

/** Orthonormal columns that span those of X Bᵀ. */
async function columnSpace(x: Tensor<'f32'>, basis: Tensor): Promise<Tensor> {
  using z = await gemm(x, basis as Tensor<'f32'>, { transposeB: true });
  const { u, s, vt } = await svd(z);
  s.dispose();
  vt.dispose();
  return u;
}

/**
 * Groups of k experts with much affinity within them: begun with the pair that has most, each filled up with the expert
 * that adds most; then experts of two groups change places as long as that adds affinity. Not the best of all partitions
 * (which is hard to find), but no exchange of two experts makes it better.
 *
 * @param affinity symmetric, [N][N]
 * @throws RangeError where k does not divide N.
 */
export function affinityGroups(affinity: readonly ArrayLike<number>[], groupSize: number): number[][] {
  const count = affinity.length;
  if (count % groupSize !== 0) throw new RangeError(`${groupSize} does not divide ${count}`);
  const between = (i: number, j: number) => (affinity[i] as ArrayLike<number>)[j] as number;
  const toGroup = (expert: number, group: readonly number[]) =>
    group.reduce((sum, member) => sum + (member === expert ? 0 : between(expert, member)), 0);
  const left = new Set(affinity.keys());
  const groups: number[][] = [];
  while (left.size > 0) {
    const group = groupSize === 1 ? [] : closestPair(left, between);
    for (const expert of group) left.delete(expert);
    while (group.length < groupSize) {
      const next = [...left].reduce((a, b) => (toGroup(b, group) > toGroup(a, group) ? b : a));
      left.delete(next);
      group.push(next);
    }
    groups.push(group);
  }
  while (exchangeOnce(groups, toGroup, between));
  return groups
    .map((group) => group.sort((a, b) => a - b))
    .sort((a, b) => (a[0] as number) - (b[0] as number));
}

function closestPair(left: ReadonlySet<number>, between: (i: number, j: number) => number): number[] {
  let best: number[] = [];
  let most = Number.NEGATIVE_INFINITY;
  for (const i of left) {
    for (const j of left) {
      if (j <= i || between(i, j) <= most) continue;
      most = between(i, j);
      best = [i, j];
    }
  }
  return best;
}

/** What counts as more affinity, so that rounding does not exchange for ever. */
const GAIN = 1e-9;

function exchangeOnce(
  groups: readonly number[][],
  toGroup: (expert: number, group: readonly number[]) => number,
  between: (i: number, j: number) => number,
): boolean {
  for (const [g, group] of groups.entries()) {
    for (const other of groups.slice(g + 1)) {
      for (const [i, a] of group.entries()) {
        for (const [j, b] of other.entries()) {
          const now = toGroup(a, group) + toGroup(b, other);
          const then = toGroup(a, other) + toGroup(b, group) - 2 * between(a, b);
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
