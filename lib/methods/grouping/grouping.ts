import { expected, MolaeError } from '../../errors.ts';
import { divisors, type Partition } from '../../factorization/groups.ts';
import type { CalibrationLayer } from '../../model/calibration-layer.ts';
import { coActivationShares } from './co-activation.ts';
import { affinityGroups } from './partition.ts';
import { rowSpaceOverlaps } from './row-spaces.ts';

export const GROUPINGS = ['consecutive', 'affinity'] as const;

/** Which experts share a latent space. */
export interface Grouping {
  /**
   * `consecutive` (the default): in the order of their numbers, alike in all layers. `affinity`: in each layer those whose gate
   * and up look at the same of its inputs (`rowSpaceOverlaps`).
   */
  readonly grouping?: (typeof GROUPINGS)[number] | undefined;
  /**
   * For `affinity`: how much it counts that experts fire together, from 0 (the default) to 1 (nothing else counts). A token
   * needs fewer latent spaces where its experts share them: fewer FLOPs, less traffic.
   */
  readonly coActivation?: number | undefined;
}

/** Whether experts are grouped by affinity where k leaves a choice. */
export function groupsByAffinity({ grouping }: Grouping, groupSize: number, numExperts: number): boolean {
  return grouping === 'affinity' && groupSize > 1 && groupSize < numExperts;
}

/**
 * @param groupSize undefined where it is not known yet.
 * @throws MolaeError `INVALID_ARGUMENT`, also for a k that leaves nothing to choose.
 */
export function checkGrouping(
  { grouping = 'consecutive', coActivation }: Grouping,
  groupSize: number | undefined,
  numExperts: number,
): void {
  if (!GROUPINGS.includes(grouping)) throw expected(GROUPINGS.join(' or '), 'grouping', grouping);
  if (coActivation !== undefined) {
    if (grouping !== 'affinity') {
      throw new MolaeError(
        'INVALID_ARGUMENT',
        'coActivation says what affinity is: it needs grouping affinity',
      );
    }
    if (!(typeof coActivation === 'number' && coActivation >= 0 && coActivation <= 1)) {
      throw expected('a number from 0 to 1', 'coActivation', coActivation);
    }
  }
  if (grouping !== 'affinity' || groupSize === undefined) return;
  if (groupsByAffinity({ grouping }, groupSize, numExperts)) return;
  const choices = divisors(numExperts).slice(1, -1);
  throw new MolaeError(
    'INVALID_ARGUMENT',
    `grouping affinity has no effect with groups of ${groupSize}: ${
      groupSize === 1 ? 'each expert has its own' : `one has all ${numExperts} experts`
    }. ${choices.length > 0 ? `Give a groupSize of ${choices.join(', ')}` : `${numExperts} experts have no other equal groups`}`,
  );
}

/** Groups the experts of layers by affinity; what it found out of a layer it keeps for other group sizes. */
export class AffinityGrouping {
  readonly #coActivation: number;
  readonly #signal: AbortSignal | undefined;
  readonly #affinities = new Map<number, readonly Float64Array[]>();

  constructor({ coActivation = 0, signal }: Grouping & { readonly signal?: AbortSignal | undefined }) {
    this.#coActivation = coActivation;
    this.#signal = signal;
  }

  async groups(layer: CalibrationLayer, groupSize: number): Promise<Partition> {
    const affinities = this.#affinities.get(layer.layer) ?? (await this.#affinitiesOf(layer));
    this.#affinities.set(layer.layer, affinities);
    return affinityGroups(affinities, groupSize);
  }

  /** Row i, column j: (1 − t) · overlap + t · co-activation, each in units of its spread over pairs. */
  async #affinitiesOf(layer: CalibrationLayer): Promise<Float64Array[]> {
    const { numExperts } = layer.block.experts;
    const t = this.#coActivation;
    // What counts for nothing is not looked for.
    const overlaps = t < 1 ? await rowSpaceOverlaps(layer, this.#signal) : undefined;
    const together = t > 0 ? await coActivationShares(layer.routing, numExperts) : undefined;
    return mixAffinities(numExperts, [
      { values: overlaps, share: 1 - t },
      { values: together, share: t },
    ]);
  }
}

/**
 * @internal Sums affinities of different kinds. Each is divided by its standard deviation over pairs: what all pairs have in common
 * makes no difference to equal groups, so a share says how much a kind tells pairs apart, whatever its unit. A
 * kind that tells none apart does not count.
 */
export function mixAffinities(
  numExperts: number,
  kinds: readonly { readonly values: readonly Float64Array[] | undefined; readonly share: number }[],
): Float64Array[] {
  const mixed = Array.from({ length: numExperts }, () => new Float64Array(numExperts));
  for (const { values, share } of kinds) {
    const spread = values ? spreadOverPairs(values) : 0;
    if (!values || !(spread > 0)) continue;
    for (const [i, row] of mixed.entries()) {
      for (const j of row.keys()) {
        row[j] = (row[j] as number) + (share * ((values[i] as Float64Array)[j] as number)) / spread;
      }
    }
  }
  return mixed;
}

/** The standard deviation over pairs i < j; 0 where they differ by rounding only. */
function spreadOverPairs(values: readonly Float64Array[]): number {
  const pairs = values.flatMap((row, i) => Array.from(row.subarray(i + 1)));
  if (pairs.length === 0) return 0;
  const mean = pairs.reduce((sum, value) => sum + value, 0) / pairs.length;
  const spread = Math.sqrt(pairs.reduce((sum, value) => sum + (value - mean) ** 2, 0) / pairs.length);
  return spread > 1e-6 * Math.abs(mean) ? spread : 0;
}
