import { DenseExperts, type LatentExperts } from '../experts.ts';
import type { Batch, Route } from './batches.ts';
import { describeCell, type LayerCell } from './cells.ts';
import { checkClose, checkFinite, multiply, silu } from './check.ts';
import { exactValues } from './data.ts';
import { type LayerDType, seeds } from './layers.ts';

/** y of one token by the dense experts, in f64. */
export function denseReference(
  cell: LayerCell,
  dtype: LayerDType,
  x: ArrayLike<number>,
  route: Route,
  token: number,
  layer = 0,
) {
  const { n, m } = cell;
  return reference(cell, route, token, (expert) => {
    const weight = (seed: number, cols: number) => exactValues(dtype, seed, n * m, 1 / Math.sqrt(cols));
    const gate = multiply(weight(seeds.gate(layer, expert), n), x, m);
    const up = multiply(weight(seeds.up(layer, expert), n), x, m);
    return multiply(weight(seeds.down(layer, expert), m), hidden(gate, up), n);
  });
}

/** y of one token by the latent experts, in f64. */
function latentReference(
  cell: LayerCell,
  dtype: LayerDType,
  x: ArrayLike<number>,
  route: Route,
  token: number,
  layer = 0,
) {
  const { n, m, k, r } = cell;
  const weight = (seed: number, rows: number, cols: number) =>
    exactValues(dtype, seed, rows * cols, 1 / Math.sqrt(cols));
  return reference(cell, route, token, (expert) => {
    const group = Math.floor(expert / k);
    const zGate = multiply(weight(seeds.shared(layer, group, 0), r, n), x, r);
    const zUp = multiply(weight(seeds.shared(layer, group, 1), r, n), x, r);
    const gate = multiply(weight(seeds.gate(layer, expert), m, r), zGate, m);
    const up = multiply(weight(seeds.up(layer, expert), m, r), zUp, m);
    const d = multiply(weight(seeds.down(layer, expert), r, m), hidden(gate, up), r);
    return multiply(weight(seeds.shared(layer, group, 2), n, r), d, n);
  });
}

function hidden(gate: Float64Array, up: Float64Array): Float64Array {
  return gate.map((g, i) => silu(g) * (up[i] as number));
}

function reference(
  { n, K }: LayerCell,
  route: Route,
  token: number,
  expertOutput: (expert: number) => Float64Array,
) {
  const y = new Float64Array(n);
  for (let slot = token * K; slot < (token + 1) * K; slot++) {
    const weight = route.weights[slot] as number;
    expertOutput(route.ids[slot] as number).forEach((value, j) => {
      (y[j] as number) += weight * value;
    });
  }
  return y;
}

const BOUND = 2e-5;

/** Runs the layer on poisoned memory and holds some tokens against the f64 reference. Returns the relative error. */
export async function checkLayer(
  experts: DenseExperts | LatentExperts,
  cell: LayerCell,
  dtype: LayerDType,
  batch: Batch,
  layer = 0,
): Promise<number> {
  const { tokens, route, x, routing, out } = batch;
  await out.write(new Float32Array(out.length).fill(Number.NaN));
  await experts.forward(x, routing, { out });
  const y = await out.read();
  const what = `${experts.constructor.name} ${describeCell(cell)} ${dtype} T=${tokens}`;
  checkFinite(what, y);
  const input = await x.read();
  let worst = 0;
  for (const token of new Set([0, tokens >> 1, tokens - 1])) {
    const row = input.subarray(token * cell.n, (token + 1) * cell.n);
    const compute = experts instanceof DenseExperts ? denseReference : latentReference;
    const wanted = compute(cell, dtype, row, route, token, layer);
    worst = Math.max(
      worst,
      checkClose(what, y.subarray(token * cell.n, (token + 1) * cell.n), wanted, BOUND),
    );
  }
  return worst;
}
