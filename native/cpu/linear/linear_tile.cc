#include "cpu/linear/linear_tile.h"

#include <algorithm>
#include <cstring>

#include "cpu/layer/gating.h"
#include "cpu/linalg/blas.h"
#include "cpu/linear/stream_kernel.h"
#include "cpu/simd/convert.h"

namespace molae::cpu {
namespace {

// Of one weight.
constexpr int64_t kSums = kTileRows * kTileCols;

bool same_rows(const Rows<float>& a, const Rows<float>& b) { return a.data == b.data && a.index == b.index; }

// f64 is for reference and for small models: BLAS does it.
void blas_tile(const Rows<double>& x, int64_t rows, const Tensor& weight, int64_t col, int64_t cols, double* out,
               int64_t out_stride, double* scratch) {
  const int64_t inner = weight.cols();
  const double* left = x.data;
  int64_t left_stride = x.stride;
  if (x.index) {
    for (int64_t i = 0; i < rows; ++i) std::memcpy(scratch + i * inner, x.row(i), inner * sizeof(double));
    left = scratch;
    left_stride = inner;
  }
  blas::gemm(false, true, rows, cols, inner, 1.0, left, left_stride, weight.as<const double>() + col * inner, inner,
             0.0, out, out_stride);
}

}  // namespace

template <>
int64_t tile_scratch<float, Tensor>(int64_t inner) {
  return std::max(2 * kSums + panel_scratch(), stream_scratch(inner) + kStreamRows * kTileCols);
}

template <>
int64_t tile_scratch<double, Tensor>(int64_t inner) {
  return kTileRows * inner + kSums;
}

template <>
int64_t row_stride<Tensor>(int64_t size) {
  return size;
}

template <>
void linear_tile<float, Tensor>(const Rows<float>& x, int64_t rows, const Tensor& weight, int64_t col, int64_t cols,
                                float* out, int64_t out_stride, float* scratch) {
  if (rows == 0 || cols == 0) return;
  if (rows <= most_streamed_rows()) return stream_rows(x, rows, weight, col, cols, out, out_stride, scratch);
  const PanelTarget target{weight, scratch};
  multiply_panels(x, rows, {&target, 1}, col, cols, scratch + kSums);
  store_panels(scratch, rows, cols, out, out_stride);
}

template <>
void linear_tile<double, Tensor>(const Rows<double>& x, int64_t rows, const Tensor& weight, int64_t col, int64_t cols,
                                 double* out, int64_t out_stride, double* scratch) {
  if (rows == 0 || cols == 0) return;
  blas_tile(x, rows, weight, col, cols, out, out_stride, scratch);
}

template <>
int64_t hidden_elements<float, Tensor>(int64_t rows, int64_t size) {
  return panel_elements(rows, size);
}

template <>
int64_t hidden_elements<double, Tensor>(int64_t rows, int64_t size) {
  return rows * size;
}

template <>
void gated_tile<float, Tensor>(const GatedSide<float>& gate, const GatedSide<float>& up, Activation activation,
                               int64_t rows, int64_t col, int64_t cols, const Hidden<float>& out, float* scratch) {
  if (rows == 0 || cols == 0) return;
  if (rows <= most_streamed_rows()) {
    float* up_out = scratch + stream_scratch(std::max(gate.weight.cols(), up.weight.cols()));
    stream_rows(gate.x, rows, gate.weight, col, cols, out.data + col, out.stride, scratch);
    stream_rows(up.x, rows, up.weight, col, cols, up_out, cols, scratch);
    for (int64_t i = 0; i < rows; ++i) {
      float* row = out.data + i * out.stride + col;
      gate_times_up(activation, row, up_out + i * cols, row, cols);
    }
    return;
  }
  const PanelTarget targets[] = {{gate.weight, scratch}, {up.weight, scratch + kSums}};
  float* rest = scratch + 2 * kSums;
  if (same_rows(gate.x, up.x)) {
    multiply_panels(gate.x, rows, targets, col, cols, rest);
  } else {
    multiply_panels(gate.x, rows, {&targets[0], 1}, col, cols, rest);
    multiply_panels(up.x, rows, {&targets[1], 1}, col, cols, rest);
  }
  for_panels(rows, [&](int64_t row, int64_t, int64_t width) {
    gate_times_up(activation, targets[0].sums + row * cols, targets[1].sums + row * cols,
                  out.data + row * out.stride + col * width, cols * width);
  });
}

template <>
void gated_tile<double, Tensor>(const GatedSide<double>& gate, const GatedSide<double>& up, Activation activation,
                                int64_t rows, int64_t col, int64_t cols, const Hidden<double>& out, double* scratch) {
  if (rows == 0 || cols == 0) return;
  double* up_out = scratch + kTileRows * std::max(gate.weight.cols(), up.weight.cols());
  blas_tile(gate.x, rows, gate.weight, col, cols, out.data + col, out.stride, scratch);
  blas_tile(up.x, rows, up.weight, col, cols, up_out, cols, scratch);
  for (int64_t i = 0; i < rows; ++i) {
    double* row = out.data + i * out.stride + col;
    gate_times_up(activation, row, up_out + i * cols, row, cols);
  }
}

template <>
void linear_tile<float, Tensor>(const Hidden<float>& x, int64_t rows, const Tensor& weight, int64_t col, int64_t cols,
                                float* out, int64_t out_stride, float* scratch) {
  if (rows <= most_streamed_rows()) {
    return linear_tile<float>(Rows<float>{x.data, x.stride}, rows, weight, col, cols, out, out_stride, scratch);
  }
  if (cols == 0) return;
  const PanelTarget target{weight, scratch};
  multiply_panels(x.data, rows, {&target, 1}, col, cols, scratch + kSums);
  store_panels(scratch, rows, cols, out, out_stride);
}

template <>
void linear_tile<double, Tensor>(const Hidden<double>& x, int64_t rows, const Tensor& weight, int64_t col, int64_t cols,
                                 double* out, int64_t out_stride, double* scratch) {
  linear_tile<double>(Rows<double>{x.data, x.stride}, rows, weight, col, cols, out, out_stride, scratch);
}

}  // namespace molae::cpu
