/** Squared differences summed, under the root. */
function distance(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += ((a[i] as number) - (b[i] as number)) ** 2;
  return Math.sqrt(sum);
}

/**
 * Hierarchical clustering with average linkage: the two clusters whose members are nearest to each other on average become
 * one, until `count` are left.
 *
 * @returns the clusters as sorted indices of points, in the order of their first points.
 */
export function averageLinkage(points: readonly ArrayLike<number>[], count: number): number[][] {
  const distances = points.map((a) => Float64Array.from(points, (b) => distance(a, b)));
  const clusters = new Map(points.map((_, i) => [i, [i]]));
  while (clusters.size > count) {
    const [a, b] = nearestPair([...clusters.keys()], distances);
    merge(a, b, clusters, distances);
  }
  return [...clusters.values()]
    .map((cluster) => cluster.sort((x, y) => x - y))
    .sort((x, y) => (x[0] as number) - (y[0] as number));
}

function nearestPair(alive: readonly number[], distances: readonly Float64Array[]): [number, number] {
  let pair: [number, number] = [alive[0] as number, alive[1] as number];
  let least = Number.POSITIVE_INFINITY;
  for (const [i, a] of alive.entries()) {
    for (const b of alive.slice(i + 1)) {
      const between = (distances[a] as Float64Array)[b] as number;
      if (between < least) {
        least = between;
        pair = [a, b];
      }
    }
  }
  return pair;
}

/** b joins a; distances to both are averaged by their members (Lance and Williams). */
function merge(
  a: number,
  b: number,
  clusters: Map<number, number[]>,
  distances: readonly Float64Array[],
): void {
  const [ours, theirs] = [clusters.get(a) as number[], clusters.get(b) as number[]];
  const share = ours.length / (ours.length + theirs.length);
  for (const other of clusters.keys()) {
    const row = distances[other] as Float64Array;
    row[a] = share * (row[a] as number) + (1 - share) * (row[b] as number);
    (distances[a] as Float64Array)[other] = row[a] as number;
  }
  clusters.set(a, [...ours, ...theirs]);
  clusters.delete(b);
}
