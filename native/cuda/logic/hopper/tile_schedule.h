#pragma once

#include <cstdint>

#include "cuda/logic/routing_plan.h"

// Which tiles a persistent block computes. Blocks are as many as the GPU has multiprocessors, and block b of n takes
// every n-th tile. Columns go first: the blocks that run together have a few tiles of rows and all of their columns,
// and the next rows are mostly the same problem's, so that both operands come from L2 after their first reading. How
// many tiles there are is known on the GPU only: the unused end of the map says so, and problems may differ in columns.
namespace molae::cuda::hopper {

struct OutputTile {
  RowTile rows;
  int32_t column;
};

struct TileSchedule {
  const RowTile* tiles;
  int64_t row_tiles, column_tiles;
  int32_t tile_columns;

  // Calls visit(OutputTile) for the tiles of block `block` of `blocks`. columns(problem): how many columns it has. What
  // is known of a tile from memory only is asked for while the ones before it are visited.
  template <class Columns, class Visit>
  MOLAE_HD void each_tile(int64_t block, int64_t blocks, Columns columns, Visit visit) const {
    const auto columns_of = [&](const RowTile& rows) { return rows.problem < 0 ? 0 : columns(rows.problem); };
    RowTile rows = rows_of(block), next = rows_of(block + blocks);
    int32_t end = columns_of(rows);
    MOLAE_ROLLED
    for (int64_t i = block; rows.problem >= 0; i += blocks) {  // behind the last one there is none
      const RowTile after_next = rows_of(i + 2 * blocks);
      const int32_t next_end = columns_of(next);
      if (column(i) < end) visit(OutputTile{rows, column(i)});
      rows = next;
      next = after_next;
      end = next_end;
    }
  }

  // Of the tile with this number.
  MOLAE_HD int64_t row_tile(int64_t i) const { return i / column_tiles; }
  MOLAE_HD RowTile rows_of(int64_t i) const {
    return i < row_tiles * column_tiles ? tiles[row_tile(i)] : RowTile{-1, 0, 0};
  }
  MOLAE_HD int32_t column(int64_t i) const { return static_cast<int32_t>(i % column_tiles) * tile_columns; }
};

}  // namespace molae::cuda::hopper
