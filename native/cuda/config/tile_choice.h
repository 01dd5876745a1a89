#pragma once

#include <cstdint>

#include "core/dtype.h"

// Which tile for which shape. The seam for tuned kernels: a new tile is a new name here and a new row in
// kernels/grouped_gemm.cuh.
namespace molae::cuda {

enum class GemmTile : uint8_t {
  Simt,    // 64 x 64, fused multiply-adds: f32, f64 and mixed weights
  Small,   // 16 x 64, tensor cores: decode, where weights are read for few rows
  Medium,  // 64 x 128
  Large,   // 128 x 128: prefill
};

constexpr int32_t tile_rows(GemmTile tile) {
  switch (tile) {
    case GemmTile::Small:
      return 16;
    case GemmTile::Large:
      return 128;
    default:
      return 64;
  }
}

// By the rows that a problem has on average: a tile that is mostly empty reads as many weights and computes for
// nothing.
inline GemmTile choose_tile(DType compute, int64_t rows, int64_t problems) {
  if (!is_half(compute)) return GemmTile::Simt;
  const int64_t average = problems > 0 ? rows / problems : rows;
  if (average <= 24) return GemmTile::Small;
  return average <= 96 ? GemmTile::Medium : GemmTile::Large;
}

}  // namespace molae::cuda
