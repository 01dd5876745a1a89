#pragma once

#include "cuda/logic/grouped_gemm.h"

namespace molae::cuda {

// Tiles by fused multiply-adds: true f32 and f64 products, of weights in any dtype. Both operands lie along the inner
// size, and are read from shared memory in vectors of it: of f32, eight multiply-adds for every load.
template <class Input, int kTileRows, int kTileCols, int kTileInner, int kTileStages>
struct SimtMath {
  using In = Input;
  using Wide = Sum<In>;
  static constexpr int kRows = kTileRows;
  static constexpr int kCols = kTileCols;
  static constexpr int kInner = kTileInner;
  static constexpr int kStages = kTileStages;
  static constexpr int kThreads = 256;
  static constexpr int kVector = 16 / sizeof(In);
  // A vector of padding: those of neighbouring rows are in different banks.
  static constexpr int kStride = kInner + kVector;
  static_assert(kInner % kVector == 0 && kStride / kVector % 2 == 1);
  static constexpr int kRun = 1;
  struct Scratch {};

  // Thread (y, x) of 16 x 16 has every sixteenth row and column: neighbours store to neighbouring columns.
  static constexpr int kSide = 16;
  static_assert(kRows % kSide == 0 && kCols % kSide == 0);
  struct Accumulator {
    Wide sums[kRows / kSide][kCols / kSide];
  };

  static MOLAE_HD void clear(Accumulator& sums) {
    MOLAE_UNROLL
    for (int i = 0; i < kRows / kSide; ++i) {
      MOLAE_UNROLL
      for (int j = 0; j < kCols / kSide; ++j) sums.sums[i][j] = 0;
    }
  }

  template <class Warp, class Sums>
  static MOLAE_HD void multiply(const Warp& warp, Sums& sums, const In* a, const In* b) {
    const int first = warp.first_thread();
    warp.each_lane([&](int lane) { multiply_thread(first + lane, sums[first + lane], a, b); });
  }

  template <class Combine>
  static MOLAE_HD void merge(Accumulator& first, const Accumulator& second, Combine combine) {
    MOLAE_UNROLL
    for (int i = 0; i < kRows / kSide; ++i) {
      MOLAE_UNROLL
      for (int j = 0; j < kCols / kSide; ++j) first.sums[i][j] = combine(first.sums[i][j], second.sums[i][j]);
    }
  }

  template <class Warp, class Sums, class Visit>
  static MOLAE_HD void each_run(const Warp& warp, Sums& sums, Scratch&, Visit visit) {
    const int first = warp.first_thread();
    warp.each_lane([&](int lane) {
      const int y = (first + lane) / kSide;
      const int x = (first + lane) % kSide;
      MOLAE_UNROLL
      for (int i = 0; i < kRows / kSide; ++i) {
        MOLAE_UNROLL
        for (int j = 0; j < kCols / kSide; ++j) visit(y + i * kSide, x + j * kSide, &sums[first + lane].sums[i][j]);
      }
    });
  }

 private:
  struct alignas(16) Vector {
    In items[kVector];
  };
  static MOLAE_HD Vector vector_at(const In* from) { return *reinterpret_cast<const Vector*>(from); }

  static MOLAE_HD void multiply_thread(int thread, Accumulator& sums, const In* a, const In* b) {
    const In* first_row = a + thread / kSide * kStride;
    const In* first_col = b + thread % kSide * kStride;
    MOLAE_UNROLL
    for (int k = 0; k < kInner; k += kVector) {
      Vector rows[kRows / kSide], cols[kCols / kSide];
      MOLAE_UNROLL
      for (int i = 0; i < kRows / kSide; ++i) rows[i] = vector_at(first_row + i * kSide * kStride + k);
      MOLAE_UNROLL
      for (int j = 0; j < kCols / kSide; ++j) cols[j] = vector_at(first_col + j * kSide * kStride + k);
      MOLAE_UNROLL
      for (int e = 0; e < kVector; ++e) {
        MOLAE_UNROLL
        for (int i = 0; i < kRows / kSide; ++i) {
          MOLAE_UNROLL
          for (int j = 0; j < kCols / kSide; ++j) {
            sums.sums[i][j] += Convert<Wide, In>::of(rows[i].items[e]) * Convert<Wide, In>::of(cols[j].items[e]);
          }
        }
      }
    }
  }
};

}  // namespace molae::cuda
