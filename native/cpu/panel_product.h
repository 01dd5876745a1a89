#pragma once

#include <cstdint>
#include <span>

#include "core/tensor.h"
#include "cpu/rows.h"

// Products of many rows, blocked for the caches. Their sums are left as the kernels make them: in panels of rows, each
// [cols][lanes], so that what follows element by element needs no other order.
namespace molae::cpu {

// The largest product that one call computes.
constexpr int64_t kPanelRows = 256;
constexpr int64_t kPanelCols = 504;  // a multiple of the columns that any kernel computes together

// One of several products with the same rows.
struct PanelTarget {
  const Tensor& weight;  // [out, inner] of any dtype but f64
  float* sums;           // panel_elements(rows, cols)
};

int64_t panel_elements(int64_t rows, int64_t cols);
// Scratch elements of one call; the sums are not among them.
int64_t panel_scratch();

// Column j of a target is x.row(i) . weight[col + j].
void multiply_panels(const Rows<float>& x, int64_t rows, std::span<const PanelTarget> targets, int64_t col,
                     int64_t cols, float* scratch);

// Panels to rows of `out`.
void store_panels(const float* sums, int64_t rows, int64_t cols, float* out, int64_t out_stride);

}  // namespace molae::cpu
