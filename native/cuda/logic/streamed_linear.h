#pragma once

#include "cuda/logic/decoder_kernel.h"
#include "cuda/logic/grouped_gemm.h"
#include "cuda/logic/number.h"

namespace molae::cuda {

// Up to this many rows, reading the weights is all that a product costs.
inline constexpr int64_t kStreamedRows = 4;

// out [rows, cols] = x [rows, inner] weight^T + bias for at most kMaxRows rows. A warp has some columns of out, that is
// rows of the weight, and reads each of them once, in order; what it reads of x serves all its columns. As in
// streamed_gemm.h eight loads of a thread are to be under way together.
template <class T, int kMaxRows>
struct StreamedLinear {
  static constexpr int kLanes = 32;
  static constexpr int kWarps = 4;
  static constexpr int kColumns = 4;  // of a warp
  static constexpr int kThreads = kLanes * kWarps;
  static constexpr int kSums = kWarps * kColumns * kMaxRows;
  static_assert(kSums <= kThreads);
  struct Shared {
    float sums[kSums][kLanes + 1];  // padded: threads that add up different sums read different banks
  };
  const T* weight;   // [cols, inner]
  const float* x;    // [rows, inner]
  const void* bias;  // [cols], or null
  DType bias_dtype;
  float* out;  // [rows, cols]
  int64_t rows, cols, inner;

  int64_t blocks() const { return rows == 0 ? 0 : blocks_of(cols, kWarps * kColumns); }

  template <class Block>
  MOLAE_HD void run(const Block& block, Shared& shared) const {
    constexpr int kVector = 16 / sizeof(T);
    const bool vectors = inner % kVector == 0 && aligned16(weight) && aligned16(x);
    const int64_t first = static_cast<int64_t>(block.index()) * kWarps * kColumns;
    block.each_thread([&](int thread) {
      float sums[kColumns][kMaxRows];
      MOLAE_UNROLL
      for (int c = 0; c < kColumns; ++c) {
        MOLAE_UNROLL
        for (int r = 0; r < kMaxRows; ++r) sums[c][r] = 0;
      }
      const int warp = thread / kLanes;
      if (vectors) {
        accumulate<kVector>(block, first + warp * kColumns, thread % kLanes, sums);
      } else {
        accumulate<1>(block, first + warp * kColumns, thread % kLanes, sums);
      }
      MOLAE_UNROLL
      for (int c = 0; c < kColumns; ++c) {
        MOLAE_UNROLL
        for (int r = 0; r < kMaxRows; ++r) {
          shared.sums[(warp * kColumns + c) * kMaxRows + r][thread % kLanes] = sums[c][r];
        }
      }
    });
    block.each_thread_unsynced([&](int thread) {
      const int64_t column = first + thread / kMaxRows;
      const int64_t row = thread % kMaxRows;
      if (thread >= kSums || column >= cols || row >= rows) return;
      float sum = 0;
      for (int lane = 0; lane < kLanes; ++lane) sum += shared.sums[thread][lane];
      out[row * cols + column] = sum + (bias ? load_as<float>(bias_dtype, bias, column) : 0.0f);
    });
  }

 private:
  template <class Item, int kCount>
  struct alignas(sizeof(Item) * kCount < 16 ? sizeof(Item) * kCount : 16) Pack {
    Item items[kCount];
  };
  template <int kCount, class Item>
  static MOLAE_HD Pack<Item, kCount> load(const Item* from) {
    return *reinterpret_cast<const Pack<Item, kCount>*>(from);
  }

  // Nobody reads a weight again before the next product: vectors leave the caches first.
  template <int kCount, class Block>
  static MOLAE_HD Pack<T, kCount> load_weights(const Block& block, const T* from) {
    if constexpr (sizeof(Pack<T, kCount>) == 16) {
      return block.template load_once<Pack<T, kCount>>(from);
    } else {
      return load<kCount>(from);
    }
  }

  template <int kCount, class Block>
  MOLAE_HD void accumulate(const Block& block, int64_t first, int lane, float (&sums)[kColumns][kMaxRows]) const {
    constexpr int64_t kStep = kLanes * kCount;
    const T* columns[kColumns];
    MOLAE_UNROLL
    for (int c = 0; c < kColumns; ++c) {
      columns[c] =
          weight + (first + c < cols ? first + c : cols - 1) * inner;  // what is not there is read and not used
    }
    MOLAE_ROLLED
    for (int64_t k = lane * kCount; k < inner; k += 2 * kStep) {
      const bool more = k + kStep < inner;
      const int64_t next = more ? k + kStep : k;
      Pack<T, kCount> these[kColumns], those[kColumns];
      MOLAE_UNROLL
      for (int c = 0; c < kColumns; ++c) these[c] = load_weights<kCount>(block, columns[c] + k);
      MOLAE_UNROLL
      for (int c = 0; c < kColumns; ++c) those[c] = load_weights<kCount>(block, columns[c] + next);
      add_products<kCount>(these, k, sums);
      if (more) add_products<kCount>(those, next, sums);
    }
  }

  template <int kCount>
  MOLAE_HD void add_products(const Pack<T, kCount> (&weights)[kColumns], int64_t k,
                             float (&sums)[kColumns][kMaxRows]) const {
    MOLAE_UNROLL
    for (int r = 0; r < kMaxRows; ++r) {
      if (r >= rows) continue;
      const Pack<float, kCount> values = load<kCount>(x + r * inner + k);
      MOLAE_UNROLL
      for (int c = 0; c < kColumns; ++c) {
        MOLAE_UNROLL
        for (int i = 0; i < kCount; ++i) sums[c][r] += to_float(weights[c].items[i]) * values.items[i];
      }
    }
  }
};

}  // namespace molae::cuda
