#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "core/checked.h"
#include "cpu/linear/packed_weight.h"
#include "cpu/linear/rows.h"

// Products of any number of rows with packed weights, blocked for the caches. Rows are read where they are: to stay out
// of each other's cache sets they should lie packed_stride apart.
namespace molae::cpu {

// Rows as far apart as an odd number of cache lines.
constexpr int64_t packed_stride(int64_t size) { return round_up(size, 32) + 16; }

// Scratch elements of one call: weights widened for several passes, and the inputs of a part where they are rounded.
int64_t packed_scratch();

// One of several products of as many rows and columns.
struct PackedTarget {
  Rows<float> x;
  const PackedWeight& weight;
  float* sums;          // [rows][.., sums_stride]
  int64_t sums_stride;  // at least packed_cols(cols)
};

// Up to so many rows, reading weights takes as long as computing or longer.
constexpr int64_t kPackedStreamRows = 24;

// Each sum is taken step after step, whatever is computed beside it: it does not depend on the other rows and columns.
// The sums of a target are x.row(i) . weight[col + j], i < rows, j < cols, and behind them those of columns that fill
// up a block. `col` begins a group, and the last column ends one, or the weight.
void multiply_packed(std::span<const PackedTarget> targets, int64_t rows, int64_t col, int64_t cols, float* scratch);

}  // namespace molae::cpu
