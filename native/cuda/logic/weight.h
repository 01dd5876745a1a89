#pragma once

#include <cstdint>

#include "core/tensor/dtype.h"
#include "cuda/logic/host_device.h"

// A weight matrix in the GPU's memory. No kernel of a layer writes one: what a kernel may read of them it may read at
// any time, before it waits for the kernel before it as well (kernels/chained_launch.cuh).
namespace molae::cuda {

struct Weight {
  const void* data;  // [rows, inner]
  int32_t rows, inner;
  DType dtype;
};

// Columns of a product are rows of the weight; of these, a part of the inner dimension.
struct WeightPart {
  int32_t first_column;
  int32_t begin, end;
};

// Asks for the first `kLines` lines of 128 bytes of so many columns.
template <int kColumns, int kLines, int kThreads, class Block>
MOLAE_HD void prefetch_columns(const Block& block, const Weight& weight, const WeightPart& part) {
  constexpr int kLine = 128, kAll = kColumns * kLines;
  const auto* data = static_cast<const char*>(weight.data);
  const int32_t columns = weight.rows, inner = weight.inner;
  const int64_t item = weight.dtype == DType::F64 ? 8 : weight.dtype == DType::F32 ? 4 : 2;
  const int64_t end = (part.end < inner ? part.end : inner) * item;
  block.each_thread_unsynced([&](int thread) {
    MOLAE_UNROLL
    for (int first = 0; first < kAll; first += kThreads) {
      const int i = first + thread;
      const int32_t column = part.first_column + i / kLines;
      const int64_t byte = part.begin * item + i % kLines * kLine;
      if (i < kAll && column < columns && byte < end) block.prefetch(data + item * column * inner + byte);
    }
  });
}

}  // namespace molae::cuda
