#pragma once

#include "core/decoder.h"
#include "cuda/logic/decoder_kernel.h"
#include "cuda/logic/number.h"

namespace molae::cuda {

// Rotates the heads of a token in place: a block a token. Cosine and sine are the same for all heads, so that the block
// computes them once, for some pairs at a time.
struct Rotary {
  static constexpr int kThreads = 128;
  struct Shared {
    float cosine[kThreads];
    float sine[kThreads];
  };
  float* x;                  // [tokens, heads * head_size]
  const int32_t* positions;  // [tokens]
  const float* frequencies;  // [pairs]
  int64_t tokens, pairs;
  RotarySpec spec;

  int64_t blocks() const { return pairs == 0 ? 0 : tokens; }
  template <class Block>
  MOLAE_HD void run(const Block& block, Shared& shared) const {
    const int64_t token = block.index();
    for (int64_t first = 0; first < pairs; first += kThreads) {
      const int64_t count = pairs - first < kThreads ? pairs - first : kThreads;
      block.each_thread([&](int thread) {
        if (thread >= count) return;
        const float angle = static_cast<float>(positions[token]) * frequencies[first + thread];
        shared.cosine[thread] = ::cosf(angle) * spec.magnitude;
        shared.sine[thread] = ::sinf(angle) * spec.magnitude;
      });
      block.each_thread([&](int thread) {
        for (int64_t i = thread; i < spec.heads * count; i += kThreads)
          rotate(token, i / count, first, i % count, shared);
      });
    }
  }

 private:
  // A pair of a head: `first + j` of all, the j-th at hand.
  MOLAE_HD void rotate(int64_t token, int64_t head, int64_t first, int64_t j, const Shared& shared) const {
    float* values = x + (token * spec.heads + head) * spec.head_size + spec.offset;
    const bool halves = spec.pairs == RotaryPairs::Halves;
    const int64_t pair = first + j;
    float& a = values[halves ? pair : 2 * pair];
    float& b = values[halves ? pair + pairs : 2 * pair + 1];
    const float rotated = a * shared.cosine[j] - b * shared.sine[j];
    b = b * shared.cosine[j] + a * shared.sine[j];
    a = rotated;
  }
};

}  // namespace molae::cuda
