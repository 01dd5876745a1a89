#pragma once

#include <cstdint>

#include "core/activation.h"
#include "core/tensor/tensor.h"
#include "cpu/linear/packed_product.h"
#include "cpu/linear/panel_product.h"
#include "cpu/linear/rows.h"

namespace molae::cpu {

// The largest tile; scratch is sized by it.
constexpr int64_t kTileRows = kPanelRows;
constexpr int64_t kTileCols = kPanelCols;

// Scratch elements that one thread needs for tiles with inputs of `inner` elements.
template <class Real, class Weight = Tensor>
int64_t tile_scratch(int64_t inner);

// How far apart rows of `size` elements best lie that are multiplied by weights of a kind.
template <class Weight>
int64_t row_stride(int64_t size);

// out[i][j] = x.row(i) . weight[col + j], for i < rows, j < cols; weight [out, inner] of any floating dtype (f64 for
// double), as it came or packed. Sums are in Real.
template <class Real, class Weight>
void linear_tile(const Rows<Real>& x, int64_t rows, const Weight& weight, int64_t col, int64_t cols, Real* out,
                 int64_t out_stride, Real* scratch);

// One side of a gated product.
template <class Real, class Weight = Tensor>
struct GatedSide {
  Rows<Real> x;
  const Weight& weight;
};

// The hidden values of the rows of a tile, in the order that suits who multiplies them: for f32 panels, but rows where
// weights are streamed or packed. The tile that writes them and the one that reads them have the same rows.
template <class Real>
struct Hidden {
  Real* data;
  int64_t stride;  // row_stride of the size of a row
};

// What those of all tiles of a problem take; those of the tile from `row` on begin at element row * stride.
template <class Real, class Weight = Tensor>
int64_t hidden_elements(int64_t rows, int64_t size);

// Columns [col, col + cols) of the hidden values of `rows` rows:
// act(gate.x.row(i) . gate.weight[j]) * (up.x.row(i) . up.weight[j]).
template <class Real, class Weight = Tensor>
void gated_tile(const GatedSide<Real, Weight>& gate, const GatedSide<Real, Weight>& up, Activation activation,
                int64_t rows, int64_t col, int64_t cols, const Hidden<Real>& out, Real* scratch);

// out[i][j] = row i of the hidden values . weight[col + j].
template <class Real, class Weight>
void linear_tile(const Hidden<Real>& x, int64_t rows, const Weight& weight, int64_t col, int64_t cols, Real* out,
                 int64_t out_stride, Real* scratch);

// As linear_tile, for what is not stored as it is: calls body(row, values) for each row. `product` is room for rows *
// row_stride(cols) elements.
template <class Real, class Weight, class Inputs, class Body>
void for_linear_tile(const Inputs& x, int64_t rows, const Weight& weight, int64_t col, int64_t cols, Real* product,
                     Real* scratch, Body body) {
  const int64_t stride = row_stride<Weight>(cols);
  linear_tile<Real>(x, rows, weight, col, cols, product, stride, scratch);
  for (int64_t i = 0; i < rows; ++i) body(i, product + i * stride);
}

}  // namespace molae::cpu
