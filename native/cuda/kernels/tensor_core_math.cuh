#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <mma.h>

#include "cuda/logic/grouped_gemm.h"

namespace molae::cuda {

template <class In>
struct TensorCoreType;
template <>
struct TensorCoreType<BF16> {
  using type = __nv_bfloat16;
};
template <>
struct TensorCoreType<F16> {
  using type = __half;
};

// Tiles by the tensor cores, 16 x 16 x 16 at a time, f32 sums. A warp has kWarpRows x kWarpCols of the tile.
template <class Input, int kTileRows, int kTileCols, int kTileInner, int kTileStages, int kWarpRows, int kWarpCols>
struct TensorCoreMath {
  using In = Input;
  using Native = typename TensorCoreType<In>::type;
  static constexpr int kRows = kTileRows;
  static constexpr int kCols = kTileCols;
  static constexpr int kInner = kTileInner;
  static constexpr int kStages = kTileStages;
  static constexpr bool kVectorLoads = true;
  // 16 bytes of padding: the eight rows of a matrix load fall into different banks.
  static constexpr int kStride = kInner + 8;
  static constexpr int kRun = 8;
  static constexpr int kWarpsAcross = kCols / kWarpCols;
  static constexpr int kWarps = kRows / kWarpRows * kWarpsAcross;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kSide = 16;
  static constexpr int kDown = kWarpRows / kSide;
  static constexpr int kAcross = kWarpCols / kSide;
  static_assert(kInner % kSide == 0 && kDown * kSide == kWarpRows && kAcross * kSide == kWarpCols);
  // wmma wants 32-byte aligned pointers.
  static_assert(kSide * kStride * sizeof(In) % 32 == 0);

  static constexpr int kScratchStride = kSide + 4;
  struct Scratch {
    float values[kWarps][kSide * kScratchStride];
  };
  struct Accumulator {
    nvcuda::wmma::fragment<nvcuda::wmma::accumulator, kSide, kSide, kSide, float> sums[kDown][kAcross];
  };

  static __device__ __forceinline__ int warp_row(int thread) { return thread / 32 / kWarpsAcross * kWarpRows; }
  static __device__ __forceinline__ int warp_col(int thread) { return thread / 32 % kWarpsAcross * kWarpCols; }

  static __device__ __forceinline__ void clear(Accumulator& sums) {
#pragma unroll
    for (int i = 0; i < kDown; ++i) {
#pragma unroll
      for (int j = 0; j < kAcross; ++j) nvcuda::wmma::fill_fragment(sums.sums[i][j], 0.0f);
    }
  }

  static __device__ __forceinline__ void multiply(int thread, Accumulator& sums, const In* a, const In* b) {
    using namespace nvcuda;
    const Native* rows = reinterpret_cast<const Native*>(a) + warp_row(thread) * kStride;
    const Native* cols = reinterpret_cast<const Native*>(b) + warp_col(thread) * kStride;
#pragma unroll
    for (int k = 0; k < kInner; k += kSide) {
      wmma::fragment<wmma::matrix_b, kSide, kSide, kSide, Native, wmma::col_major> right[kAcross];
#pragma unroll
      for (int j = 0; j < kAcross; ++j) wmma::load_matrix_sync(right[j], cols + j * kSide * kStride + k, kStride);
#pragma unroll
      for (int i = 0; i < kDown; ++i) {
        wmma::fragment<wmma::matrix_a, kSide, kSide, kSide, Native, wmma::row_major> left;
        wmma::load_matrix_sync(left, rows + i * kSide * kStride + k, kStride);
#pragma unroll
        for (int j = 0; j < kAcross; ++j) wmma::mma_sync(sums.sums[i][j], left, right[j], sums.sums[i][j]);
      }
    }
  }

  // Fragments of one kind have one layout, so element by element is right whatever it is.
  template <class Combine>
  static __device__ __forceinline__ void merge(Accumulator& first, const Accumulator& second, Combine combine) {
#pragma unroll
    for (int i = 0; i < kDown; ++i) {
#pragma unroll
      for (int j = 0; j < kAcross; ++j) {
#pragma unroll
        for (int e = 0; e < first.sums[i][j].num_elements; ++e) {
          first.sums[i][j].x[e] = combine(first.sums[i][j].x[e], second.sums[i][j].x[e]);
        }
      }
    }
  }

  // Through the warp's own shared memory, where lane l has half of row l / 2.
  template <class Visit>
  static __device__ __forceinline__ void each_run(int thread, const Accumulator& sums, Scratch& scratch, Visit visit) {
    float* values = scratch.values[thread / 32];
    const int row = thread % 32 / 2;
    const int col = thread % 2 * kRun;
#pragma unroll
    for (int i = 0; i < kDown; ++i) {
#pragma unroll
      for (int j = 0; j < kAcross; ++j) {
        nvcuda::wmma::store_matrix_sync(values, sums.sums[i][j], kScratchStride, nvcuda::wmma::mem_row_major);
        __syncwarp();
        float run[kRun];
#pragma unroll
        for (int e = 0; e < kRun; ++e) run[e] = values[row * kScratchStride + col + e];
        visit(warp_row(thread) + i * kSide + row, warp_col(thread) + j * kSide + col, run);
        __syncwarp();
      }
    }
  }
};

}  // namespace molae::cuda
