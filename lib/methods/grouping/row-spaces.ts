import { throwIfAborted } from '../../errors.ts';
import { groupBases } from '../../factorization/calibrated-group.ts';
import { gemm, svd } from '../../linalg.ts';
import type { CalibrationLayer } from '../../model/calibration-layer.ts';
import type { Operator } from '../../operators.ts';
import type { Tensor } from '../../tensor.ts';
import { gatherRows } from '../expert-tokens.ts';
import { denseExperts } from '../experts.ts';

/** Of an expert's directions, those that count: this share of its width. */
const LEADING = 1 / 4;
/** Inputs that row spaces are compared on, for each direction of them. */
const TOKENS_PER_DIRECTION = 16;
/** With fewer for each direction, all spaces would fill what the inputs span, and be alike. */
const LEAST_TOKENS_PER_DIRECTION = 4;

/**
 * Row i, column j: how much two experts' gate and up look at the same of the layer's inputs, between 0 and 1. Compared are
 * their leading directions, in the metric of the inputs X: the rows of B span there what the columns of X Bᵀ do.
 *
 * Memory: for each expert its leading directions [m/4, n] of gate and up, and what X makes of one of them, [4m, m/4], in f32.
 */
export async function rowSpaceOverlaps(
  layer: CalibrationLayer,
  signal?: AbortSignal | undefined,
): Promise<Float64Array[]> {
  const experts = denseExperts(layer);
  const { numExperts, intermediateSize, hiddenSize } = experts;
  const tokens = layer.x.shape[0] as number;
  const leading = LEADING * Math.min(intermediateSize, hiddenSize);
  const size = Math.max(1, Math.floor(Math.min(leading, tokens / LEAST_TOKENS_PER_DIRECTION)));
  const wanted = Math.min(tokens, TOKENS_PER_DIRECTION * size);
  using x = await gatherRows(
    layer.x,
    Int32Array.from({ length: wanted }, (_, i) => Math.floor((i * tokens) / wanted)),
  );
  const bases: Record<'gate' | 'up', Tensor[]> = { gate: [], up: [] };
  try {
    for (let expert = 0; expert < numExperts; expert++) {
      const { gate, up } = await leadingDirections(layer, expert, size, signal);
      bases.gate.push(gate);
      bases.up.push(up);
    }
    const overlaps = Array.from({ length: numExperts }, () => new Float64Array(numExperts));
    for (const operator of ['gate', 'up'] as const) await addOverlaps(bases[operator], x, overlaps, signal);
    return overlaps;
  } finally {
    for (const basis of [...bases.gate, ...bases.up]) basis.dispose();
  }
}

/** B of an expert by itself, [size, n] in f32. */
async function leadingDirections(
  layer: CalibrationLayer,
  expert: number,
  size: number,
  signal: AbortSignal | undefined,
): Promise<Record<'gate' | 'up', Tensor>> {
  const source = {
    experts: denseExperts(layer),
    inputs: layer,
    group: expert,
    members: [expert],
    sizes: (operator: Operator) => (operator === 'down' ? undefined : size),
  };
  const { gate, up } = await groupBases(source, { dtype: 'f32', signal }, () => {});
  return { gate: gate as Tensor, up: up as Tensor };
}

/** Half of the mean squared cosine between the spaces of two experts is one operator's part. */
async function addOverlaps(
  bases: readonly Tensor[],
  x: Tensor<'f32'>,
  overlaps: readonly Float64Array[],
  signal: AbortSignal | undefined,
): Promise<void> {
  const spaces: Tensor[] = [];
  try {
    for (const basis of bases) {
      throwIfAborted(signal);
      spaces.push(await columnSpace(x, basis));
    }
    for (const [i, one] of spaces.entries()) {
      throwIfAborted(signal);
      for (const [j, other] of spaces.slice(0, i + 1).entries()) {
        using cosines = await gemm(one, other, { transposeA: true });
        const squares = (await cosines.toFloat32()).reduce((sum, cosine) => sum + cosine * cosine, 0);
        const size = Math.min(one.shape[1] as number, other.shape[1] as number);
        const overlap = squares / size / 2;
        (overlaps[i] as Float64Array)[j] = ((overlaps[i] as Float64Array)[j] as number) + overlap;
        if (i !== j)
          (overlaps[j] as Float64Array)[i] = ((overlaps[j] as Float64Array)[i] as number) + overlap;
      }
    }
  } finally {
    for (const space of spaces) space.dispose();
  }
}

/** Orthonormal columns that span those of X Bᵀ. */
async function columnSpace(x: Tensor<'f32'>, basis: Tensor): Promise<Tensor> {
  using z = await gemm(x, basis, { transposeB: true });
  const { u, s, vt } = await svd(z);
  s.dispose();
  vt.dispose();
  return u;
}
