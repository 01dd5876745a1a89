#pragma once

#include "cuda/logic/block_reduce.h"
#include "cuda/logic/decoder_kernel.h"
#include "cuda/logic/number.h"

namespace molae::cuda {

// out = weight * x / sqrt(mean(x^2) + eps) over each group of `size` elements: a block a group. out may be x: a thread
// writes only what it alone reads.
struct RmsNorm {
  static constexpr int kThreads = 128;
  struct Shared {
    double squares[kThreads];
  };
  DType dtype;
  const void* weight;  // [size]
  const float* x;      // [groups, size]
  float* out;          // [groups, size]
  int64_t groups, size;
  float eps;

  int64_t blocks() const { return groups; }
  template <class Block>
  MOLAE_HD void run(const Block& block, Shared& shared) const {
    const float* from = x + block.index() * size;
    float* to = out + block.index() * size;
    block.each_thread([&](int thread) {
      double sum = 0;
      for (int64_t i = thread; i < size; i += kThreads) sum += static_cast<double>(from[i]) * from[i];
      shared.squares[thread] = sum;
    });
    reduce_block<kThreads>(block, shared.squares, [](double a, double b) { return a + b; });
    block.each_thread_unsynced([&](int thread) {
      const auto inverse = static_cast<float>(1 / ::sqrt(shared.squares[0] / static_cast<double>(size) + eps));
      for (int64_t i = thread; i < size; i += kThreads) to[i] = from[i] * inverse * load_as<float>(dtype, weight, i);
    });
  }
};

}  // namespace molae::cuda
