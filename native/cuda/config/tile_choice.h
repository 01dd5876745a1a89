#pragma once

#include <cstdint>
#include <optional>

#include "core/dtype.h"

// Which tile for which shape. The seam for tuned kernels: a new tile is a new name here and a new row in
// kernels/grouped_gemm.cuh or, for Hopper, kernels/hopper/grouped_gemm.cuh.
namespace molae::cuda {

// What a tile multiplies with.
enum class TileFamily : uint8_t {
  Simt,    // fused multiply-adds: f32, f64 and mixed weights
  Mma,     // tensor cores by mma.sync: halves, on every GPU that molae knows
  Hopper,  // tensor cores by wgmma, weights by the copy engine: halves, compute capability 9.0
};

enum class GemmTile : uint8_t {
  Simt,       // 64 rows x 64 columns
  Small,      // 16 x 64: decode, where weights are read for few rows
  Medium,     // 64 x 128
  Large,      // 128 x 128: prefill
  Hopper8,    // 8 x 128, and so on: the weights are the M side of the tensor cores' product, which has 64 rows at least
  Hopper16,   // and could not be filled with so few tokens
  Hopper32,   //
  Hopper64,   //
  Hopper128,  // 128 x 256, or 128 x 128 of gate and of up: prefill
};

inline constexpr GemmTile kGemmTiles[] = {GemmTile::Simt,     GemmTile::Small,    GemmTile::Medium,
                                          GemmTile::Large,    GemmTile::Hopper8,  GemmTile::Hopper16,
                                          GemmTile::Hopper32, GemmTile::Hopper64, GemmTile::Hopper128};

constexpr TileFamily tile_family(GemmTile tile) {
  switch (tile) {
    case GemmTile::Simt:
      return TileFamily::Simt;
    case GemmTile::Small:
    case GemmTile::Medium:
    case GemmTile::Large:
      return TileFamily::Mma;
    default:
      return TileFamily::Hopper;
  }
}

constexpr int32_t tile_rows(GemmTile tile) {
  switch (tile) {
    case GemmTile::Hopper8:
      return 8;
    case GemmTile::Small:
    case GemmTile::Hopper16:
      return 16;
    case GemmTile::Hopper32:
      return 32;
    case GemmTile::Large:
    case GemmTile::Hopper128:
      return 128;
    default:
      return 64;
  }
}

// Which tiles halves are to take.
struct TileRequest {
  TileFamily family;              // Mma or Hopper, by size
  std::optional<GemmTile> exact;  // or this one, whatever the size: for tests
};

inline bool wants_hopper(const TileRequest& request) {
  return request.exact ? tile_family(*request.exact) == TileFamily::Hopper : request.family == TileFamily::Hopper;
}

// What halves take where nobody has asked for anything. Hopper's tiles are what compute capability 9.0 is to have,
// because only wgmma reaches that chip's full rate; but they have never run on a GPU. This becomes Hopper when
// scripts/gpu-check.sh has passed on one. Until then MOLAE_CUDA_TILES=hopper asks for them.
inline constexpr TileFamily kDefaultHalfTiles = TileFamily::Mma;

// By the rows that a problem has on average: a tile that is mostly empty reads as many weights and computes for
// nothing.
inline GemmTile choose_mma_tile(int64_t average) {
  if (average <= 24) return GemmTile::Small;
  return average <= 96 ? GemmTile::Medium : GemmTile::Large;
}

// Problems differ in rows, and one with a row too many reads its weights once more: a tile has half as many again as
// the average. From 64 rows on a second tile reads them from L2, and the wide tile needs half the shared memory traffic
// for the same work.
inline GemmTile choose_hopper_tile(int64_t average) {
  if (average <= 5) return GemmTile::Hopper8;
  if (average <= 10) return GemmTile::Hopper16;
  if (average <= 21) return GemmTile::Hopper32;
  return average <= 64 ? GemmTile::Hopper64 : GemmTile::Hopper128;
}

inline GemmTile choose_tile(DType compute, int64_t rows, int64_t problems, const TileRequest& request) {
  if (!is_half(compute)) return GemmTile::Simt;
  if (request.exact) return *request.exact;
  const int64_t average = problems > 0 ? rows / problems : rows;
  return request.family == TileFamily::Hopper ? choose_hopper_tile(average) : choose_mma_tile(average);
}

}  // namespace molae::cuda
