import { DenseExperts, type LatentExperts } from '../experts.ts';
import type { CalibrationLayer } from '../model/calibration-layer.ts';
import { OPERATORS, type Operator } from '../operators.ts';
import type { Tensor } from '../tensor.ts';
import { type CompressedLayer, withExperts } from './method.ts';
import { costsOf } from './sizes.ts';

/** The experts of a layer that is to be compressed: `checkDenseModel` and `checkSource` refuse models with others. */
export function denseExperts({ block: { experts } }: Pick<CalibrationLayer, 'block'>): DenseExperts {
  if (!(experts instanceof DenseExperts)) throw new Error('the experts of a source are dense');
  return experts;
}

/** The layer with other experts behind its own router, at what they cost as they are stored. */
export function replaceExperts(
  layer: CalibrationLayer,
  experts: DenseExperts | LatentExperts,
): CompressedLayer {
  return withExperts(layer, experts, costsOf(experts, layer.block.spec.topK));
}

/** Experts like others, with matrices of their own: `make` adds those of each expert. What it made goes where it fails. */
export async function remakeExperts(
  experts: DenseExperts,
  make: (made: Readonly<Record<Operator, Tensor[]>>) => Promise<void>,
): Promise<DenseExperts> {
  const made: Record<Operator, Tensor[]> = { gate: [], up: [], down: [] };
  const all = () => OPERATORS.flatMap((operator) => made[operator]);
  try {
    await make(made);
    return new DenseExperts({ ...experts, ...made, owned: all() });
  } catch (error) {
    for (const tensor of all()) tensor.dispose();
    throw error;
  }
}
