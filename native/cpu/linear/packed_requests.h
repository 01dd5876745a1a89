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

// Asks for a line.
MOLAE_INLINE void request(const void* line, bool into_first) {
  if (into_first) {
    __builtin_prefetch(line, 0, 3);
  } else {
    __builtin_prefetch(line, 0, 2);
  }
}

// Requests for what is read next, at an even rate: of all blocks in turns. They go to the second cache, as the first
// has the weights at hand, some lines with every sixteen steps. Or to the first, then about a line of each block at
// a time: there requests take places in which loads wait, too. Passes are short: so there is no division.
template <int Blocks>
class PieceAhead {
 public:
  // So many passes over the columns of the blocks.
  MOLAE_INLINE PieceAhead(const PackedProduct& p, int64_t passes)
      : at_(p.next), block_bytes_(p.next_block_bytes), bytes_(p.next_bytes), into_first_(p.into_first) {
    if (into_first_) {
      while (shift_ > 1 && bytes_ << shift_ > p.inner * passes * kLineBytes) --shift_;
    }
    per_line_ = ((p.inner + steps() - 1) >> shift_) * passes * kLineBytes;
  }

  MOLAE_INLINE int64_t steps() const { return int64_t{1} << shift_; }

  MOLAE_INLINE void ask() {
    for (due_ += bytes_; due_ >= per_line_; due_ -= per_line_, at_ += kLineBytes) {
#pragma GCC unroll 3
      for (int i = 0; i < Blocks; ++i) request(at_ + i * block_bytes_, into_first_);
    }
  }

 private:
  static constexpr int64_t kLineBytes = 64;

  const std::byte* at_;
  int64_t block_bytes_;
  int64_t bytes_;  // of a block
  int shift_ = 4;
  // Every turn is owed a share of the bytes: a line where that many are due.
  int64_t per_line_;
  int64_t due_ = 0;
  bool into_first_;
};

// With few rows: what is read a little later, into the first cache; at the end of the piece the beginning of the next.
template <int Blocks, class Item>
class RunAhead {
 public:
  MOLAE_INLINE RunAhead(const PackedProduct& p, int64_t)
      : at_(p.weights + std::min(kAhead, p.inner / 2 * kPair)),
        end_(p.weights + p.inner / 2 * kPair),
        block_bytes_(p.block_bytes),
        next_(p.next ? p.next : p.weights),
        next_block_bytes_(p.next_block_bytes) {}

  static constexpr int64_t steps() { return 2; }

  MOLAE_INLINE void ask() {
    if (at_ == end_) {
      at_ = next_;
      block_bytes_ = next_block_bytes_;
    }
#pragma GCC unroll 3
    for (int i = 0; i < Blocks; ++i) {
#pragma GCC unroll 2
      for (int64_t line = 0; line < kPair; line += 64) __builtin_prefetch(at_ + i * block_bytes_ + line, 0, 3);
    }
    at_ += kPair;
  }

 private:
  static constexpr int64_t kPair = 2 * kPackedCols * sizeof(Item);  // bytes of two steps
  static constexpr int64_t kAhead = 1280;                           // in each block

  const std::byte* at_;
  const std::byte* end_;
  int64_t block_bytes_;
  const std::byte* next_;
  int64_t next_block_bytes_;
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
  for (int64_t i = first; i < last; ++i) request(p.x[i] + p.inner + line, p.into_first);
}

}  // namespace molae::cpu
