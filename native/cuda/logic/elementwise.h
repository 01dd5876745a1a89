#pragma once

#include "cuda/logic/decoder_kernel.h"
#include "cuda/logic/number.h"

namespace molae::cuda {

// Elements of a dense array: calls body(i) for those of a block.
inline constexpr int kElementThreads = 256;
inline constexpr int64_t kElementsOfBlock = 8 * kElementThreads;

template <class Block, class Body>
MOLAE_HD void each_element(const Block& block, int64_t count, Body body) {
  const int64_t begin = block.index() * kElementsOfBlock;
  const int64_t end = begin + kElementsOfBlock < count ? begin + kElementsOfBlock : count;
  block.each_thread_unsynced([&](int thread) {
    for (int64_t i = begin + thread; i < end; i += kElementThreads) body(i);
  });
}

// to += from
struct AddTo {
  static constexpr int kThreads = kElementThreads;
  using Shared = NoShared;
  const float* from;
  float* to;
  int64_t count;

  int64_t blocks() const { return blocks_of(count, kElementsOfBlock); }
  template <class Block>
  MOLAE_HD void run(const Block& block, Shared&) const {
    each_element(block, count, [&](int64_t i) { to[i] += from[i]; });
  }
};

// out [.., cols] += bias [cols]
struct AddBias {
  static constexpr int kThreads = kElementThreads;
  using Shared = NoShared;
  DType dtype;
  const void* bias;
  float* out;
  int64_t cols;
  int64_t count;

  int64_t blocks() const { return blocks_of(count, kElementsOfBlock); }
  template <class Block>
  MOLAE_HD void run(const Block& block, Shared&) const {
    each_element(block, count, [&](int64_t i) { out[i] += load_as<float>(dtype, bias, i % cols); });
  }
};

// x = high + low, both bf16: the two keep at least 16 of the 24 bits of an f32, and products with them are exact in
// f32.
struct SplitInTwo {
  static constexpr int kThreads = kElementThreads;
  using Shared = NoShared;
  const float* x;
  BF16* high;
  BF16* low;
  int64_t count;

  int64_t blocks() const { return blocks_of(count, kElementsOfBlock); }
  template <class Block>
  MOLAE_HD void run(const Block& block, Shared&) const {
    each_element(block, count, [&](int64_t i) {
      const float value = x[i];
      high[i] = FromFloat<BF16>::of(value);
      const float rest = value - to_float(high[i]);
      low[i] = FromFloat<BF16>::of(rest - rest == 0 ? rest : 0.0f);  // infinity stays itself, and does not become NaN
    });
  }
};

}  // namespace molae::cuda
