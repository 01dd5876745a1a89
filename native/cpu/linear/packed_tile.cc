#include <cstring>

#include "cpu/layer/gating.h"
#include "cpu/linear/linear_tile.h"
#include "cpu/linear/packed_product.h"

// Tiles with packed weights.
namespace molae::cpu {
namespace {

// Of one weight.
constexpr int64_t kSums = kTileRows * packed_stride(kTileCols);

}  // namespace

template <>
int64_t tile_scratch<float, PackedWeight>(int64_t) {
  return 2 * kSums + packed_scratch();
}

template <>
int64_t row_stride<PackedWeight>(int64_t size) {
  return packed_stride(size);
}

template <>
int64_t hidden_elements<float, PackedWeight>(int64_t rows, int64_t size) {
  return rows * packed_stride(size);
}

template <>
void linear_tile<float, PackedWeight>(const Rows<float>& x, int64_t rows, const PackedWeight& weight, int64_t col,
                                      int64_t cols, float* out, int64_t out_stride, float* scratch) {
  if (rows == 0 || cols == 0) return;
  const bool whole = cols % kPackedCols == 0;  // else kernels store more columns than there are
  float* sums = whole ? out : scratch + packed_scratch();
  const int64_t stride = whole ? out_stride : packed_stride(cols);
  const PackedTarget target{x, weight, sums, stride};
  multiply_packed({&target, 1}, rows, col, cols, scratch);
  if (whole) return;
  for (int64_t i = 0; i < rows; ++i) std::memcpy(out + i * out_stride, sums + i * stride, cols * sizeof(float));
}

template <>
void gated_tile<float, PackedWeight>(const GatedSide<float, PackedWeight>& gate,
                                     const GatedSide<float, PackedWeight>& up, Activation activation, int64_t rows,
                                     int64_t col, int64_t cols, const Hidden<float>& out, float* scratch) {
  if (rows == 0 || cols == 0) return;
  float* gates = scratch + packed_scratch();
  float* ups = gates + kSums;
  const int64_t stride = packed_stride(cols);
  const PackedTarget targets[] = {{gate.x, gate.weight, gates, stride}, {up.x, up.weight, ups, stride}};
  multiply_packed(targets, rows, col, cols, scratch);
  for (int64_t i = 0; i < rows; ++i) {
    gate_times_up(activation, gates + i * stride, ups + i * stride, out.data + i * out.stride + col, cols);
  }
}

template <>
void linear_tile<float, PackedWeight>(const Hidden<float>& x, int64_t rows, const PackedWeight& weight, int64_t col,
                                      int64_t cols, float* out, int64_t out_stride, float* scratch) {
  linear_tile<float>(Rows<float>{x.data, x.stride}, rows, weight, col, cols, out, out_stride, scratch);
}

}  // namespace molae::cpu
