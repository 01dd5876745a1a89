#include "cpu/linear/tile_list.h"

#include <algorithm>

#include "core/checked.h"
#include "cpu/linear/linear_tile.h"
#include "cpu/linear/packed_product.h"
#include "cpu/linear/stream_kernel.h"

namespace molae::cpu {
namespace {

// Tiles that stream weights are large, so that memory is read in long runs, and many enough that threads end together.
constexpr int64_t kStreamTiles = 8;  // a thread
constexpr int64_t kLeastStreamCols = 48;
constexpr int64_t kMostStreamCols = 264;

// Tiles with more rows. Those of unpacked weights are few, as each packs its rows anew.
constexpr int64_t kPanelTiles = 2;  // a thread
constexpr int64_t kPackedTiles = 8;
constexpr int64_t kLeastPanelCols = 96;

// Multiplications that one thread does sooner, in some 10 microseconds, than it has woken another.
constexpr int64_t kLittleWork = 1 << 16;

// `count` cut into parts of about the same size: multiples of `unit`, none above `most`.
int64_t part_size(int64_t count, int64_t most, int64_t unit) {
  most = most / unit * unit;
  const int64_t parts = ceil_divide(count, most);
  return std::min(most, round_up(ceil_divide(count, parts), unit));
}

}  // namespace

template <>
TileShape tile_shape<Tensor>() {
  return {most_streamed_rows(), 32, 24, panel_unit(), kPanelTiles};
}

template <>
TileShape tile_shape<PackedWeight>() {
  return {kPackedStreamRows, 24, kGroupCols, kGroupCols, kPackedTiles};
}

void TileList::clear() {
  problems_.clear();
  tiles_.clear();
  streamed_cols_ = 0;
  panel_cols_ = 0;
  products_ = 0;
}

void TileList::add(int32_t problem, int64_t rows, int64_t cols, int64_t inner) {
  if (rows == 0 || cols == 0) return;
  problems_.push_back({problem, rows, cols});
  if (rows <= shape_.streamed_rows) {
    streamed_cols_ += cols;
  } else {
    panel_cols_ += ceil_divide(rows, kTileRows) * cols;
  }
  products_ += rows * cols * inner;
}

int TileList::cut(int threads) {
  if (products_ < kLittleWork) threads = 1;
  const int64_t stream_cols = std::clamp(round_up(streamed_cols_ / (threads * kStreamTiles), shape_.stream_unit),
                                         kLeastStreamCols, kMostStreamCols);
  const int64_t panel_cols = std::clamp(panel_cols_ / (threads * shape_.tiles), kLeastPanelCols, kTileCols);
  for (const Problem& problem : problems_) {
    const bool streams = problem.rows <= shape_.streamed_rows;
    const int64_t height = part_size(problem.rows, kTileRows, shape_.row_unit);
    const int64_t width = streams ? part_size(problem.cols, stream_cols, shape_.stream_unit)
                                  : part_size(problem.cols, panel_cols, shape_.col_unit);
    for (int64_t row = 0; row < problem.rows; row += height) {
      for (int64_t col = 0; col < problem.cols; col += width) {
        tiles_.push_back(
            {problem.index, row, std::min(height, problem.rows - row), col, std::min(width, problem.cols - col)});
      }
    }
  }
  return threads;
}

}  // namespace molae::cpu
