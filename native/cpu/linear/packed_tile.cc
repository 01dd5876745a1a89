#include <cstring>

#include "cpu/layer/gating.h"
#include "cpu/linear/linear_tile.h"
#include "cpu/linear/packed_product.h"

// Tiles with packed weights.
namespace molae::cpu {
namespace {

// Of one weight.
constexpr int64_t kSums = kTileRows * kTileCols;

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
  for_linear_tile(x, rows, weight, col, cols, scratch + packed_scratch(), scratch,
                  [&](int64_t row, int64_t first, int64_t count, const float* values) {
                    std::memcpy(out + row * out_stride + first, values, count * sizeof(float));
                  });
}

template <>
void gated_tile<float, PackedWeight>(const GatedSide<float, PackedWeight>& gate,
                                     const GatedSide<float, PackedWeight>& up, Activation activation, int64_t rows,
                                     int64_t col, int64_t cols, const Hidden<float>& out, float* scratch) {
  if (rows == 0 || cols == 0) return;
  float* gates = scratch + packed_scratch();
  float* ups = gates + kSums;
  const PackedTarget targets[] = {{gate.x, gate.weight, gates}, {up.x, up.weight, ups}};
  multiply_packed(targets, rows, col, cols, scratch);
  for (int64_t i = 0; i < rows; ++i) {
    float* to = out.data + i * out.stride + col;
    for_groups_of_row(gates, rows, i, cols, [&](const float* group, int64_t first, int64_t count) {
      gate_times_up(activation, group, ups + (group - gates), to + first, count);
    });
  }
}

template <>
void linear_tile<float, PackedWeight>(const Hidden<float>& x, int64_t rows, const PackedWeight& weight, int64_t col,
                                      int64_t cols, float* out, int64_t out_stride, float* scratch) {
  linear_tile<float>(rows_of(x), rows, weight, col, cols, out, out_stride, scratch);
}

}  // namespace molae::cpu
