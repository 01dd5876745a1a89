#pragma once

#include <cstdint>
#include <vector>

namespace molae::cpu {

// A part of a product: what one thread computes at a time.
struct Tile {
  int32_t problem;  // which of several products; their meaning is the caller's
  int64_t row, rows, col, cols;
};

// What kernels of a kind take at a time: parts of these units leave no rest but the last.
struct TileShape {
  int64_t streamed_rows;  // up to so many, reading weights takes longer than computing
  int64_t row_unit;
  int64_t stream_unit;  // columns, with so few rows
  int64_t col_unit;     // with more
  int64_t tiles;        // a thread, with more rows: enough that threads end together
};

// For weights as they came or packed.
template <class Weight>
TileShape tile_shape();

// The tiles of one stage: independent products, whose tiles threads take one after the other. Keeps its memory.
class TileList {
 public:
  explicit TileList(const TileShape& shape) : shape_(shape) {}

  void clear();
  // One rows x cols product of `inner` elements each.
  void add(int32_t problem, int64_t rows, int64_t cols, int64_t inner);
  // Cuts what was added into tiles for up to `threads`, and says for how many: little work is not worth waking anybody.
  int cut(int threads);

  int64_t size() const { return static_cast<int64_t>(tiles_.size()); }
  const Tile& operator[](int64_t i) const { return tiles_[i]; }

 private:
  struct Problem {
    int32_t index;
    int64_t rows, cols;
  };

  TileShape shape_;
  std::vector<Problem> problems_;
  std::vector<Tile> tiles_;
  int64_t streamed_cols_ = 0;  // of all problems
  int64_t panel_cols_ = 0;     // the same, once for each block of rows
  int64_t products_ = 0;
};

}  // namespace molae::cpu
