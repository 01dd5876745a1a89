import type { Device } from '../../lib/device.ts';
import { DenseExperts, LatentExperts } from '../../lib/experts.ts';
import type { Routing } from '../../lib/routing.ts';
import type { Tensor } from '../../lib/tensor.ts';
import { checkClose, checkFinite, multiply, silu } from './check.ts';
import { exactValues, poisoned, tensor, uniformSource, values } from './data.ts';

/** The sizes of one layer, by the symbols of the design. */
export interface LayerCell {
  readonly model: string;
  readonly n: number;
  readonly m: number;
  readonly N: number;
  readonly K: number;
  readonly k: number;
  readonly r: number;
  /** N of the model, where N here is smaller. */
  readonly fullN: number;
}

/** The cells of the design that fit on a CPU. */
export const CELLS: readonly LayerCell[] = [
  ...[15, 60].map((k) => ({ model: 'Qwen1.5-MoE', n: 2048, m: 1408, N: 60, K: 4, k, r: 704, fullN: 60 })),
  ...[8, 64].map((k) => ({ model: 'OLMoE', n: 2048, m: 1024, N: 64, K: 8, k, r: 512, fullN: 64 })),
  ...[16, 128].flatMap((k) =>
    [384, 768].map((r) => ({ model: 'Qwen3-30B-A3B', n: 2048, m: 768, N: 128, K: 8, k, r, fullN: 128 })),
  ),
  { model: 'DeepSeek-V2-Lite', n: 2048, m: 1408, N: 64, K: 6, k: 16, r: 704, fullN: 64 },
];

/** One cell a model, for a quick look: its smaller group and rank. */
export function quickCells(): LayerCell[] {
  return CELLS.filter((cell, i) => CELLS.findIndex(({ model }) => model === cell.model) === i);
}

/**
 * The same layer with at most about `most` experts, in as many groups as before: a token falls into about as many of them,
 * so the latent layer's share of shared work stays. Groups get smaller with the layer.
 */
export function scaleDown(cell: LayerCell, most: number): LayerCell {
  if (cell.N <= most) return cell;
  const groups = cell.N / cell.k;
  const k = Math.max(1, Math.floor(most / groups), Math.ceil(cell.K / groups));
  return { ...cell, N: groups * k, k };
}

export function describeCell({ model, n, m, N, K, fullN }: LayerCell): string {
  return `${model} n${n} m${m} N${N}${N === fullN ? '' : ` of ${fullN}`} K${K}`;
}

export type LayerDType = 'f32' | 'bf16';

/** Seeds of a layer's matrices; peers make the same ones. */
export const seeds = {
  gate: (layer: number, expert: number) => layer * 10_007 + 3 * expert + 1,
  up: (layer: number, expert: number) => layer * 10_007 + 3 * expert + 2,
  down: (layer: number, expert: number) => layer * 10_007 + 3 * expert + 3,
  shared: (layer: number, group: number, operator: number) => 5003 + layer * 10_007 + 3 * group + operator,
  input: 7,
};

export function denseLayer(device: Device, cell: LayerCell, dtype: LayerDType, layer = 0): DenseExperts {
  const { n, m, N } = cell;
  const operator = (seed: (layer: number, expert: number) => number, rows: number, cols: number) =>
    Array.from({ length: N }, (_, i) =>
      tensor(device, dtype, [rows, cols], seed(layer, i), 1 / Math.sqrt(cols)),
    );
  const gate = operator(seeds.gate, m, n);
  const up = operator(seeds.up, m, n);
  const down = operator(seeds.down, n, m);
  return new DenseExperts({ gate, up, down, owned: [...gate, ...up, ...down] });
}

/** Random factors: as fast as those of a real conversion. */
export function latentLayer(device: Device, cell: LayerCell, dtype: LayerDType, layer = 0): LatentExperts {
  const { n, m, N, k, r } = cell;
  const groups = Array.from({ length: N / k }, (_, g) => Array.from({ length: k }, (_, i) => g * k + i));
  const own = (seed: (layer: number, expert: number) => number, rows: number, cols: number) =>
    groups.map((group) => {
      const stacked = device.empty(dtype, [k, rows, cols]);
      group.forEach((expert, i) => {
        using view = stacked.slice(i);
        void view.write(values(dtype, seed(layer, expert), rows * cols, 1 / Math.sqrt(cols)));
      });
      return stacked;
    });
  const shared = (operator: number, rows: number, cols: number) =>
    groups.map((_, g) =>
      tensor(device, dtype, [rows, cols], seeds.shared(layer, g, operator), 1 / Math.sqrt(cols)),
    );
  const gate = { a: own(seeds.gate, m, r), b: shared(0, r, n) };
  const up = { a: own(seeds.up, m, r), b: shared(1, r, n) };
  const down = { a: own(seeds.down, r, m), b: shared(2, n, r) };
  const owned: Tensor[] = [gate, up, down].flatMap(({ a, b }) => [...a, ...b]);
  return new LatentExperts({ groups, gate, up, down, owned });
}

export type Distribution = 'uniform' | 'zipf';

/** Where tokens go: K different experts each, weights that sum to 1. */
export interface Route {
  readonly ids: Int32Array;
  readonly weights: Float32Array;
  /** Router logits [T, N] whose top K and softmax over them are ids and weights, for peers that route themselves. */
  logits(numExperts: number): Float32Array;
}

export function makeRoute(
  tokens: number,
  { N, K }: Pick<LayerCell, 'N' | 'K'>,
  seed: number,
  distribution: Distribution = 'uniform',
): Route {
  const uniform = uniformSource(seed);
  const ids = new Int32Array(tokens * K);
  const chosen = new Float32Array(tokens * K);
  const popularity = Float64Array.from({ length: N }, (_, i) => (distribution === 'zipf' ? 1 / (i + 1) : 1));
  for (let t = 0; t < tokens; t++) {
    const left = popularity.slice();
    let total = left.reduce((sum, p) => sum + p, 0);
    for (let j = 0; j < K; j++) {
      let at = uniform() * total;
      let expert = left.findIndex((p) => {
        at -= p;
        return p > 0 && at < 0;
      });
      if (expert < 0) expert = left.findLastIndex((p) => p > 0);
      total -= left[expert] as number;
      left[expert] = 0;
      ids[t * K + j] = expert;
      chosen[t * K + j] = uniform();
    }
  }
  const weights = new Float32Array(tokens * K);
  for (let t = 0; t < tokens; t++) {
    const row = Array.from(chosen.subarray(t * K, (t + 1) * K), Math.exp);
    const sum = row.reduce((a, b) => a + b, 0);
    weights.set(
      row.map((e) => e / sum),
      t * K,
    );
  }
  const logits = (numExperts: number) => {
    const all = new Float32Array(tokens * numExperts).fill(-20);
    ids.forEach((expert, slot) => {
      all[Math.floor(slot / K) * numExperts + expert] = chosen[slot] as number;
    });
    return all;
  };
  return { ids, weights, logits };
}

/** What a batch really touches. */
export interface Touched {
  /** Distinct (token, group) pairs. */
  readonly tokenGroups: number;
  readonly experts: number;
  readonly groups: number;
  readonly tokens: number;
}

export function touchedBy(route: Route, tokens: number, { K, k }: LayerCell): Touched {
  const experts = new Set(route.ids);
  const groups = new Set([...experts].map((i) => Math.floor(i / k)));
  let tokenGroups = 0;
  for (let t = 0; t < tokens; t++) {
    tokenGroups += new Set(Array.from(route.ids.subarray(t * K, (t + 1) * K), (i) => Math.floor(i / k))).size;
  }
  return { tokenGroups, experts: experts.size, groups: groups.size, tokens };
}

export interface Work {
  readonly flops: number;
  /** Weights that are touched, x and y, each once. */
  readonly bytes: number;
}

export function denseWork({ n, m, K }: LayerCell, dtype: LayerDType, touched: Touched): Work {
  return {
    flops: 6 * m * n * K * touched.tokens,
    bytes: 3 * m * n * touched.experts * itemBytes(dtype) + 8 * n * touched.tokens,
  };
}

export function latentWork({ n, m, K, r }: LayerCell, dtype: LayerDType, touched: Touched): Work {
  return {
    flops: 6 * r * (n * touched.tokenGroups + m * K * touched.tokens),
    bytes: 3 * r * (m * touched.experts + n * touched.groups) * itemBytes(dtype) + 8 * n * touched.tokens,
  };
}

function itemBytes(dtype: LayerDType): number {
  return dtype === 'f32' ? 4 : 2;
}

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
export function latentReference(
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

/** One batch on a device. */
export interface Batch {
  readonly tokens: number;
  readonly route: Route;
  readonly x: Tensor<'f32'>;
  readonly routing: Routing;
  readonly out: Tensor<'f32'>;
  dispose(): void;
}

export function makeBatch(device: Device, cell: LayerCell, tokens: number, route: Route): Batch {
  const x = tensor(device, 'f32', [tokens, cell.n], seeds.input);
  const ids = device.tensor('i32', route.ids, [tokens, cell.K]);
  const weights = device.tensor('f32', route.weights, [tokens, cell.K]);
  const out = poisoned(device, 'f32', [tokens, cell.n]);
  const all = [x, ids, weights, out];
  return {
    tokens,
    route,
    x,
    routing: { ids, weights },
    out,
    dispose: () => {
      for (const tensor of all) tensor.dispose();
    },
  };
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
