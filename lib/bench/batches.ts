import type { Device } from '../device.ts';
import type { Routing } from '../routing.ts';
import type { Tensor } from '../tensor.ts';
import type { LayerCell, LayerKind } from './cells.ts';
import { poisoned, tensor, uniformSource } from './data.ts';
import { type LayerDType, seeds } from './layers.ts';

export type Distribution = 'uniform' | 'zipf';

/** Where tokens go: K different experts each, weights that sum to 1. */
export interface Route {
  readonly ids: Int32Array;
  readonly weights: Float32Array;
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
  return { ids, weights };
}

/** What a batch really touches. */
interface Touched {
  /** Distinct (token, group) pairs. */
  readonly tokenGroups: number;
  readonly experts: number;
  readonly groups: number;
  readonly tokens: number;
}

function touchedBy(route: Route, tokens: number, { K, k }: LayerCell): Touched {
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

/** Of one batch through one layer. */
export function layerWork(
  kind: LayerKind,
  cell: LayerCell,
  dtype: LayerDType,
  batch: Pick<Batch, 'route' | 'tokens'>,
): Work {
  return totalWork(layerStages(kind, cell, dtype, batch));
}

export function totalWork(stages: readonly Work[]): Work {
  const total = (name: keyof Work) => stages.reduce((sum, stage) => sum + stage[name], 0);
  return { flops: total('flops'), bytes: total('bytes') };
}

/** Of one batch, stage by stage: each needs all of the one before, so that they cannot overlap. */
export function layerStages(
  kind: LayerKind,
  cell: LayerCell,
  dtype: LayerDType,
  { route, tokens }: Pick<Batch, 'route' | 'tokens'>,
): readonly Work[] {
  return (kind === 'dense' ? denseStages : latentStages)(
    cell,
    itemBytes(dtype),
    touchedBy(route, tokens, cell),
  );
}

function denseStages({ n, m, K }: LayerCell, item: number, { tokens, experts }: Touched): Work[] {
  const product = 2 * m * n * K * tokens;
  const weights = m * n * experts * item;
  const activations = 4 * n * tokens;
  const hidden = { flops: 2 * product, bytes: 2 * weights + activations };
  const outputs = { flops: product, bytes: weights + activations };
  return [hidden, outputs];
}

function latentStages(
  { n, m, K, r }: LayerCell,
  item: number,
  { tokens, tokenGroups, experts, groups }: Touched,
): Work[] {
  const shared = { flops: 2 * r * n * tokenGroups, bytes: r * n * groups * item };
  const own = { flops: 2 * r * m * K * tokens, bytes: r * m * experts * item };
  const activations = 4 * n * tokens;
  const latentInputs = { flops: 2 * shared.flops, bytes: 2 * shared.bytes + activations };
  const hidden = { flops: 2 * own.flops, bytes: 2 * own.bytes };
  const outputs = { flops: shared.flops, bytes: shared.bytes + activations };
  return [latentInputs, hidden, own, outputs];
}

function itemBytes(dtype: LayerDType): number {
  return dtype === 'f32' ? 4 : 2;
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
