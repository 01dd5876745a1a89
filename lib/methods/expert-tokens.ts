import { DenseExperts } from '../experts.ts';
import { awaitNative } from '../native.ts';
import type { Routing } from '../routing.ts';
import type { Tensor } from '../tensor.ts';

/** The calibration tokens that reach one expert. */
export interface ExpertTokens {
  /** Their rows in the inputs of the layer. */
  readonly rows: Int32Array;
  /** Their routing weights. */
  readonly weights: Float32Array;
}

/** Sorts a routing by experts. */
export async function tokensByExpert({ ids, weights }: Routing, numExperts: number): Promise<ExpertTokens[]> {
  const topK = ids.shape[1] as number;
  const [chosen, given] = [await ids.read(), await weights.read()];
  const found = Array.from({ length: numExperts }, () => ({ rows: [] as number[], weights: [] as number[] }));
  for (const [slot, expert] of chosen.entries()) {
    found[expert]?.rows.push(Math.floor(slot / topK));
    found[expert]?.weights.push(given[slot] as number);
  }
  return found.map((own) => ({ rows: Int32Array.from(own.rows), weights: Float32Array.from(own.weights) }));
}

/** Some rows of a matrix, in f32. */
export async function gatherRows(table: Tensor, rows: Int32Array): Promise<Tensor<'f32'>> {
  using ids = table.device.tensor('i32', rows);
  const out = table.device.empty('f32', [rows.length, table.shape[1] as number]);
  await awaitNative(() => table.device.native.gatherRows(table.native, ids.native, out.native));
  return out;
}

/** The matrices of one expert. */
export interface ExpertMatrices {
  readonly gate: Tensor;
  readonly up: Tensor;
  readonly down: Tensor;
}

/** What one expert alone puts out for x [T, n], every row times its weight. */
export async function expertOutputs(
  { gate, up, down }: ExpertMatrices,
  { activation }: Pick<DenseExperts, 'activation'>,
  x: Tensor<'f32'>,
  weights: Float32Array = new Float32Array(x.shape[0] as number).fill(1),
): Promise<Tensor<'f32'>> {
  const shape = [weights.length, 1];
  using alone = new DenseExperts({ gate: [gate], up: [up], down: [down], activation });
  using ids = x.device.tensor('i32', new Int32Array(weights.length), shape);
  using given = x.device.tensor('f32', weights, shape);
  const out = x.device.empty('f32', x.shape);
  await alone.forward(x, { ids, weights: given }, { out });
  return out;
}
