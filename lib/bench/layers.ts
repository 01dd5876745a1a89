import type { Device } from '../device.ts';
import { DenseExperts, LatentExperts } from '../experts.ts';
import type { Operator } from '../operators.ts';
import type { Tensor } from '../tensor.ts';
import type { LayerCell } from './cells.ts';
import { type BenchDType, tensor, values } from './data.ts';

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
  return randomDense(device, cell, dtype, (operator, expert) => seeds[operator](layer, expert));
}

/** N random experts; `seed` says which random matrix each operator of each is. */
export function randomDense(
  device: Device,
  { n, m, N }: Pick<LayerCell, 'n' | 'm' | 'N'>,
  dtype: BenchDType,
  seed: (operator: Operator, expert: number) => number,
): DenseExperts {
  const draw = (operator: Operator, rows: number, cols: number) =>
    Array.from({ length: N }, (_, i) =>
      tensor(device, dtype, [rows, cols], seed(operator, i), 1 / Math.sqrt(cols)),
    );
  const [gate, up, down] = [draw('gate', m, n), draw('up', m, n), draw('down', n, m)];
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
