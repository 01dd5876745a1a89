#pragma once

#include "cuda/logic/grouped_gemm.h"
#include "cuda/logic/hopper/fragment.h"

namespace molae::cuda {

// Tiles by the tensor cores, f32 sums: mma.sync.m16n8k16 of operands that ldmatrix brings from shared memory. A warp
// has kWarpRows x kWarpCols of the tile. What a lane reads and has is in PTX ISA, "ldmatrix" and "Matrix fragments for
// mma.m16n8k16 with floating point type"; logic/host_warp.h models both.
template <class Input, int kTileRows, int kTileCols, int kTileInner, int kTileStages, int kWarpRows, int kWarpCols>
struct TensorCoreMath {
  using In = Input;
  static_assert(sizeof(In) == 2);
  static constexpr int kRows = kTileRows;
  static constexpr int kCols = kTileCols;
  static constexpr int kInner = kTileInner;
  static constexpr int kStages = kTileStages;
  // 16 bytes of padding: the eight rows of a matrix fall into different banks.
  static constexpr int kStride = kInner + 8;
  static constexpr int kRun = 8;
  static constexpr int kWarpsAcross = kCols / kWarpCols;
  static constexpr int kWarps = kRows / kWarpRows * kWarpsAcross;
  static constexpr int kThreads = 32 * kWarps;

  // Of one product: rows and inner size; two products side by side are a square, of which a lane has eight sums.
  static constexpr int kSide = 16;
  static constexpr int kDown = kWarpRows / kSide;
  static constexpr int kAcross = kWarpCols / kSide;
  static constexpr int kSteps = kInner / kSide;
  static_assert(kInner % kSide == 0 && kDown * kSide == kWarpRows && kAcross * kSide == kWarpCols);
  static_assert(kStride * sizeof(In) % 16 == 0, "ldmatrix reads rows of 16 aligned bytes");

  static constexpr int kScratchStride = kSide + 4;
  struct Scratch {
    float values[kWarps][kSide * kScratchStride];
  };
  struct Accumulator {
    float sums[kDown][kAcross][2][4];
  };

  static MOLAE_HD void clear(Accumulator& sums) {
    MOLAE_UNROLL
    for (int i = 0; i < kDown; ++i) {
      MOLAE_UNROLL
      for (int j = 0; j < kAcross; ++j) {
        MOLAE_UNROLL
        for (int e = 0; e < 8; ++e) sums.sums[i][j][e / 4][e % 4] = 0;
      }
    }
  }

  // Operands of one step are on their way from shared memory while those of the step before are multiplied.
  template <class Warp, class Sums>
  static MOLAE_HD void multiply(const Warp& warp, Sums& sums, const In* a, const In* b) {
    const int first = warp.first_thread();
    const In* rows = a + warp_row(first) * kStride;
    const In* cols = b + warp_col(first) * kStride;
    typename Warp::template Local<Buffers> buffers(warp);
    load(warp, buffers, 0, rows, cols);
    MOLAE_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      if (step + 1 < kSteps) load(warp, buffers, step + 1, rows, cols);
      MOLAE_UNROLL
      for (int i = 0; i < kDown; ++i) {
        MOLAE_UNROLL
        for (int j = 0; j < 2 * kAcross; ++j) {
          warp.template multiply_add<In>(
              [&](int lane) { return sums[first + lane].sums[i][j / 2][j % 2]; },
              [&](int lane) { return buffers[lane].step[step % 2].left[i]; },
              [&](int lane) { return buffers[lane].step[step % 2].right[j / 2] + j % 2 * 2; });
        }
      }
    }
  }

  template <class Combine>
  static MOLAE_HD void merge(Accumulator& first, const Accumulator& second, Combine combine) {
    MOLAE_UNROLL
    for (int i = 0; i < kDown; ++i) {
      MOLAE_UNROLL
      for (int j = 0; j < kAcross; ++j) {
        MOLAE_UNROLL
        for (int e = 0; e < 8; ++e) {
          float& value = first.sums[i][j][e / 4][e % 4];
          value = combine(value, second.sums[i][j][e / 4][e % 4]);
        }
      }
    }
  }

  // Through the warp's own shared memory, where lane l has half of row l / 2.
  template <class Warp, class Sums, class Visit>
  static MOLAE_HD void each_run(const Warp& warp, Sums& sums, Scratch& scratch, Visit visit) {
    const int first = warp.first_thread();
    float* values = scratch.values[first / 32];
    MOLAE_UNROLL
    for (int i = 0; i < kDown; ++i) {
      MOLAE_UNROLL
      for (int j = 0; j < kAcross; ++j) {
        warp.each_lane([&](int lane) {
          MOLAE_UNROLL
          for (int e = 0; e < 8; ++e) {  // they lie as a warp's of wgmma do
            values[hopper::fragment_row(lane, e) * kScratchStride + hopper::fragment_column(lane, e)] =
                sums[first + lane].sums[i][j][e / 4][e % 4];
          }
        });
        warp.sync();
        warp.each_lane([&](int lane) {
          const int row = lane / 2, col = lane % 2 * kRun;
          float run[kRun];
          MOLAE_UNROLL
          for (int e = 0; e < kRun; ++e) run[e] = values[row * kScratchStride + col + e];
          visit(warp_row(first) + i * kSide + row, warp_col(first) + j * kSide + col, run);
        });
        warp.sync();
      }
    }
  }

 private:
  struct Operands {
    uint32_t left[kDown][4];
    uint32_t right[kAcross][4];  // of two products side by side, two registers each
  };
  struct Buffers {
    Operands step[2];
  };

  static MOLAE_HD int warp_row(int thread) { return thread / 32 / kWarpsAcross * kWarpRows; }
  static MOLAE_HD int warp_col(int thread) { return thread / 32 % kWarpsAcross * kWarpCols; }

  // Four matrices of 8 x 8 with each load, of which lane l says where row l % 8 of matrix l / 8 is.
  template <class Warp, class Registers>
  static MOLAE_HD void load(const Warp& warp, Registers& buffers, int step, const In* rows, const In* cols) {
    MOLAE_UNROLL
    for (int j = 0; j < kAcross; ++j) {  // the inner size first, then the columns
      warp.load_matrices(
          [&](int lane) {
            return cols + (j * kSide + lane % 8 + lane / 16 * 8) * kStride + step * kSide + lane / 8 % 2 * 8;
          },
          [&](int lane) { return buffers[lane].step[step % 2].right[j]; });
    }
    MOLAE_UNROLL
    for (int i = 0; i < kDown; ++i) {  // the rows first, then the inner size
      warp.load_matrices(
          [&](int lane) { return rows + (i * kSide + lane % 16) * kStride + step * kSide + lane / 16 * 8; },
          [&](int lane) { return buffers[lane].step[step % 2].left[i]; });
    }
  }
};

}  // namespace molae::cuda
