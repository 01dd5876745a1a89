#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>

#include "core/tensor/dtype.h"

// Which tile for which shape. The seam for tuned kernels: a new tile is a new name here, its shape in
// mma_tiles.h and its case in kernels/grouped_gemm.cuh or, for Hopper, kernels/hopper/grouped_gemm.cuh. The streaming
// kernel is kernels/streamed_gemm.cu.
namespace molae::cuda {

// What a tile multiplies with.
enum class TileFamily : uint8_t {
  Simt,    // fused multiply-adds: f32, f64 and mixed weights
  Stream,  // the same for a few rows, where reading the weights is all that counts: every dtype
  Mma,     // tensor cores by mma.sync: halves, on every GPU that molae knows
  Hopper,  // tensor cores by wgmma, weights by the copy engine: halves, compute capability 9.0
};

enum class GemmTile : uint8_t {
  Simt,       // 64 rows x 64 columns
  Stream,     // 4 rows: weights go from memory to registers once
  Small,      // 16 x 64: few rows, where weights are read more than they are computed with
  Medium,     // 64 x 128
  Large,      // 128 x 128: prefill
  Hopper8,    // 8 x 128, and so on: the weights are the M side of the tensor cores' product, which has 64 rows at least
  Hopper16,   // and could not be filled with so few tokens
  Hopper32,   //
  Hopper64,   //
  Hopper128,  // 128 x 256, or 128 x 128 of gate and of up: prefill
};

inline constexpr GemmTile kGemmTiles[] = {
    GemmTile::Simt,    GemmTile::Stream,   GemmTile::Small,    GemmTile::Medium,   GemmTile::Large,
    GemmTile::Hopper8, GemmTile::Hopper16, GemmTile::Hopper32, GemmTile::Hopper64, GemmTile::Hopper128};

constexpr TileFamily tile_family(GemmTile tile) {
  switch (tile) {
    case GemmTile::Simt:
      return TileFamily::Simt;
    case GemmTile::Stream:
      return TileFamily::Stream;
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
    case GemmTile::Stream:
      return 4;
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

// Which tiles layers are to take.
struct TileRequest {
  TileFamily family;              // Mma or Hopper, by size: for halves
  std::optional<GemmTile> exact;  // or this one, whatever the size: for tests. Only Stream is for more than halves
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

// By the rows that a tile is to have room for. A problem with a row too many reads its weights once more; but from 64
// rows on a second tile reads them from L2, and the wide tile needs half the shared memory traffic for the same work.
inline GemmTile choose_hopper_tile(int64_t rows) {
  if (rows <= 8) return GemmTile::Hopper8;
  if (rows <= 16) return GemmTile::Hopper16;
  if (rows <= 32) return GemmTile::Hopper32;
  return rows <= 96 ? GemmTile::Hopper64 : GemmTile::Hopper128;
}

// What problems have on average, and half as many again where they differ in rows.
constexpr int64_t room_for(int64_t average, int64_t problems) {
  return problems == 1 ? average : average + (average + 1) / 2;
}

// Up to so many tokens an expert has one tile of the streaming kernel, as it gets a token once at most, whatever top_k
// is: all weights are read once. The tensor cores' tiles read them once as well, but through shared memory and, being
// mostly empty, in blocks of 64 columns and more, of which a decode step has too few to keep a card's memory busy. From
// 5 tokens on an expert may have a second tile, and a tile of 8 or 16 rows reads its weights once.
inline constexpr int64_t kStreamTokens = 4;

inline bool choose_stream(int64_t tokens, const TileRequest& request) {
  if (request.exact) return *request.exact == GemmTile::Stream;
  return tokens <= kStreamTokens;
}

// All that is known on the host of how many rows a layer's products have.
struct RoutedShape {
  int64_t tokens, top_k, experts, groups;
};

// The tiles of a layer's products, by what their problems are.
struct LayerTiles {
  GemmTile experts;  // h, and what experts make of it: a row for each (token, expert)
  GemmTile groups;   // z, and y from the latent space: a row for each distinct (token, group)
  GemmTile tokens;   // the shared expert: all tokens
};

// Rows of a group on average, where groups are of one size and a token's experts are any: it has a row in those that
// one of them is in. Routings that prefer some experts have fewer rows, but how many, the host does not know.
inline int64_t average_group_rows(const RoutedShape& shape) {
  const auto experts = static_cast<double>(shape.experts);
  const double others = experts - experts / static_cast<double>(shape.groups);
  double none = 1;  // the probability that none of a token's experts is in a group
  for (int64_t i = 0; i < std::min(shape.top_k, shape.experts); ++i) {
    none *= std::max(0.0, others - static_cast<double>(i)) / (experts - static_cast<double>(i));
  }
  return std::llround(static_cast<double>(shape.tokens) * (1 - none));
}

inline GemmTile choose_tile(DType compute, int64_t average, int64_t problems, const TileRequest& request) {
  if (!is_half(compute)) return GemmTile::Simt;
  if (request.exact) return *request.exact;
  return request.family == TileFamily::Hopper ? choose_hopper_tile(room_for(average, problems))
                                              : choose_mma_tile(average);
}

// A group has the tokens of many experts, and the shared expert all of them: in one tile for all, made for an expert's
// rows, their weights would be read many times. By rows alone: tall tiles may leave a part of the card without work
// where columns are few, which nobody has measured.
inline LayerTiles choose_tiles(DType compute, const RoutedShape& shape, const TileRequest& request) {
  if (choose_stream(shape.tokens, request)) return {GemmTile::Stream, GemmTile::Stream, GemmTile::Stream};
  const int64_t pairs = shape.tokens * shape.top_k;
  return {choose_tile(compute, pairs / shape.experts, shape.experts, request),
          choose_tile(compute, average_group_rows(shape), shape.groups, request),
          choose_tile(compute, shape.tokens, 1, request)};
}

// Into how many parts a streamed product is cut along its inner dimension, where its tiles and columns alone make
// `blocks` blocks. A block keeps 16 KiB of weights under way (128 threads, 8 loads of 16 bytes). Its share of the 4.8
// TB/s that an H200 is said to have takes a multiprocessor about 25 KiB if a load takes 0.7 us (assumed, not measured):
// two blocks are the least, four leave room for blocks that end early. A part costs a row of partial sums, to be
// written and read again: under 512 elements, which a warp reads in one go, it is not worth that.
inline constexpr int kStreamBlocks = 4;
inline constexpr int64_t kMaxSplits = 64;

inline int32_t choose_splits(int64_t blocks, int64_t inner, int multiprocessors) {
  constexpr int64_t kLeastInner = 512;
  if (blocks <= 0) return 1;
  const int64_t splits = std::min(int64_t{kStreamBlocks} * multiprocessors / blocks, inner / kLeastInner);
  return static_cast<int32_t>(std::clamp<int64_t>(splits, 1, kMaxSplits));
}

}  // namespace molae::cuda
