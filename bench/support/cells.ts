import { CELLS, type LayerCell } from '../../lib/bench/cells.ts';

/** One cell a model, for a quick look: its smaller group and rank. */
export function quickCells(): LayerCell[] {
  return CELLS.filter((cell, i) => CELLS.findIndex(({ model }) => model === cell.model) === i);
}
