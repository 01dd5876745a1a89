#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cpu/linear/packed_kernel.h"
#include "cpu/linear/packed_weight.h"
#include "cpu/simd/vectors.h"

// What the kernels of packed weights ask memory for while they compute.
namespace molae::cpu {

// Compilers would load the weights of two steps at once, or advance a pointer for every row and every block: more than
// there are registers for. GCC then keeps addresses in vectors: on a Xeon five or six rows of f32 took a sixth more
// time.
template <class Value>
MOLAE_INLINE void forget(Value& value) {
  asm volatile("" : "+r"(value));
}

// Requests for what is read next, at an even rate, a few lines at a time. They go to the second cache, as the first has
// the weights at hand, and its requests take places in which loads wait, too: on a Zen 4 kernels of 9 to 16 rows of f32
// are 9 to 17% slower with those. Passes are short: so there is no division.
class PieceAhead {
 public:
  // So many passes over the columns of the group.
  MOLAE_INLINE PieceAhead(const PackedProduct& p, int64_t passes) : at_(p.next), bytes_(p.next_bytes) {
    while (shift_ > 1 && bytes_ << shift_ > p.inner * passes * kLinesAtATime * kLineBytes) --shift_;
    per_line_ = ((p.inner + steps() - 1) >> shift_) * passes * kLineBytes;
  }

  MOLAE_INLINE int64_t steps() const { return int64_t{1} << shift_; }

  MOLAE_INLINE void ask() {
    for (due_ += bytes_; due_ >= per_line_; due_ -= per_line_, at_ += kLineBytes) __builtin_prefetch(at_, 0, 2);
  }

 private:
  static constexpr int64_t kLineBytes = 64;
  static constexpr int64_t kLinesAtATime = 3;

  const std::byte* at_;
  int64_t bytes_;
  int shift_ = 4;
  // Every turn is owed a share of the bytes: a line where that many are due.
  int64_t per_line_;
  int64_t due_ = 0;
};

// With few rows: what is read a little later, into the first cache; at the end of the piece the beginning of the next.
template <int Blocks, class Item>
class RunAhead {
 public:
  MOLAE_INLINE RunAhead(const PackedProduct& p, int64_t)
      : asks_(!p.reads_ahead),
        at_(p.weights + std::min(kAhead, p.inner / 2 * kPair)),
        end_(p.weights + p.inner / 2 * kPair),
        next_(p.next ? p.next : p.weights) {}

  static constexpr int64_t steps() { return 2; }

  MOLAE_INLINE void ask() {
    if (!asks_) return;
    if (at_ == end_) at_ = next_;
#pragma GCC unroll 6
    for (int64_t line = 0; line < kPair; line += 64) __builtin_prefetch(at_ + line, 0, 3);
    at_ += kPair;
  }

 private:
  static constexpr int64_t kPair = 2 * Blocks * kPackedCols * sizeof(Item);  // bytes of two steps
  static constexpr int64_t kAhead = 10 * 2 * kGroupCols * sizeof(float);     // whole pairs of any kind

  bool asks_;
  const std::byte* at_;
  const std::byte* end_;
  const std::byte* next_;
};

// The same for the inputs of a pass, those that follow the piece, as most rows that need them are not yet in the caches
// when the first columns of a tile come: the rows in turns, as evenly as every `steps` steps allow.
template <int R>
MOLAE_INLINE void ask_for_inputs(const PackedProduct& p, int64_t k, int64_t steps) {
  constexpr int64_t kLine = 16;  // floats
  if (k >= p.next_inner) return;
  const int64_t line = k / kLine * kLine;
  const int64_t first = R * (k - line) / kLine;
  const int64_t last = R * std::min(kLine, k - line + steps) / kLine;
  for (int64_t i = first; i < last; ++i) __builtin_prefetch(p.x[i] + p.inner + line, 0, 2);
}

}  // namespace molae::cpu
