#pragma once

#include <cstdint>

#include "core/tensor.h"

namespace molae::cpu {

// Rows of a matrix, in order or picked by index.
template <class Real>
struct Rows {
  const Real* data;
  int64_t stride;
  const int32_t* index = nullptr;  // null: row i is row i

  const Real* row(int64_t i) const { return data + (index ? index[i] : i) * stride; }
};

// The largest tile that the forward pass asks for; scratch is sized by it.
constexpr int64_t kTileRows = 256;
constexpr int64_t kTileCols = 256;

// Scratch elements that one thread needs for linear_tile with inputs of `inner` elements.
inline int64_t linear_tile_scratch(int64_t inner) { return (kTileRows + kTileCols) * inner; }

// out[i][j] = x.row(i) . weight[col + j], for i < rows, j < cols; weight [out, inner] of any floating dtype (f64 for
// double). Sums are in Real.
template <class Real>
void linear_tile(const Rows<Real>& x, int64_t rows, const Tensor& weight, int64_t col, int64_t cols, Real* out,
                 int64_t out_stride, Real* scratch);

}  // namespace molae::cpu
