#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "core/checked.h"
#include "core/tensor/tensor.h"
#include "cpu/linear/panel_kernel.h"
#include "cpu/linear/rows.h"

// Products of many rows, blocked for the caches. Rows are read and sums are left as the kernels have them, in panels:
// of the rows of a tile some vectors each, [cols][lanes], the panel of row i (the first of a panel) from element i *
// cols on. So what follows element by element needs no other order, and sums can be the rows of another product.
namespace molae::cpu {

// The largest product that one call computes.
constexpr int64_t kPanelRows = 256;
constexpr int64_t kPanelCols = 512;
// Columns in multiples of it leave no rest.
int64_t panel_unit();

// One of several products with the same rows.
struct PanelTarget {
  const Tensor& weight;  // [out, inner] of any dtype but f64
  float* sums;           // panel_elements(rows, cols)
};

// The rows of a tile that are in panels of vectors. Those after them are too few for one more: each is a panel of its
// own, with one lane.
inline int64_t rows_in_vectors(int64_t rows) {
  const int64_t rest = rows % panel_kernel().lanes;
  return rest < rows && rest <= panel_kernel().few ? rows - rest : rows;
}

// The panels of a tile of so many rows. Calls body(first row, rows, lanes) for each; the lanes of the last one of
// vectors may be more than its rows. Three vectors are best: a weight that was loaded meets most rows. Two of them, or
// twice two, leave no rest; one alone would be slow.
template <class Body>
void for_panels(int64_t rows, Body body) {
  const int64_t lanes = panel_kernel().lanes;
  const int64_t in_vectors = rows_in_vectors(rows);
  for (int64_t row = 0; row < in_vectors;) {
    const int64_t left = ceil_divide(in_vectors - row, lanes);
    const int64_t vectors = left == 2 || left == 4 ? 2 : std::min(left, PanelKernel::kMostVectors);
    body(row, std::min(in_vectors - row, vectors * lanes), vectors * lanes);
    row += vectors * lanes;
  }
  for (int64_t row = in_vectors; row < rows; ++row) body(row, 1, 1);
}

int64_t panel_elements(int64_t rows, int64_t cols);
// Scratch elements of one call; the sums are not among them.
int64_t panel_scratch();

// Column j of a target is x.row(i) . weight[col + j].
void multiply_panels(const Rows<float>& x, int64_t rows, std::span<const PanelTarget> targets, int64_t col,
                     int64_t cols, float* scratch);
// The same for rows that are in panels.
void multiply_panels(const float* panels, int64_t rows, std::span<const PanelTarget> targets, int64_t col, int64_t cols,
                     float* scratch);

// Panels to rows of `out`.
void store_panels(const float* sums, int64_t rows, int64_t cols, float* out, int64_t out_stride);

}  // namespace molae::cpu
