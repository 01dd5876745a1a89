#pragma once

#include "cuda/logic/host_device.h"

namespace molae::cuda {

// values[0] becomes the combination of all values, one of each thread, by halving: a fixed order, so the same bits
// every time. kThreads is a power of two. Ends with a barrier.
template <int kThreads, class Block, class T, class Combine>
MOLAE_HD void reduce_block(const Block& block, T* values, Combine combine) {
  static_assert((kThreads & (kThreads - 1)) == 0);
  for (int half = kThreads / 2; half > 0; half /= 2) {
    block.each_thread([&](int thread) {
      if (thread < half) values[thread] = combine(values[thread], values[thread + half]);
    });
  }
}

}  // namespace molae::cuda
