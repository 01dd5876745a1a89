#include "cpu/linear/packed_kernel.h"

#include <algorithm>
#include <type_traits>

#include "cpu/linear/packed_weight.h"
#include "cpu/linear/stream_weights.h"
#include "cpu/simd/vectors.h"
#include "cpu/system/instruction_sets.h"

namespace molae::cpu {
namespace {

// Compilers would load the weights of two steps at once, and run out of registers.
template <class Item>
MOLAE_INLINE void read_again(const Item*& steps) {
  asm("" : "+r"(steps));
}

// How packed weights become floats: a vector of columns from `col` on, of the first or the second of two steps.
template <int Lanes>
struct PackedF32 {
  using Item = float;
  template <int Of>
  static MOLAE_INLINE void read(typename Vectors<Lanes>::Floats& to, const Item* steps, int col) {
    load(to, steps + Of * kPackedCols + col);
  }
};

template <int Lanes>
struct PackedBF16 {
  using Item = uint16_t;
  template <int Of>
  static MOLAE_INLINE void read(typename Vectors<Lanes>::Floats& to, const Item* steps, int col) {
    BF16Weights<Lanes>::template read<Of>(to, steps + 2 * col);
  }
};

template <int Lanes>
struct PackedF16 {
  using Item = uint16_t;
  template <int Of>
  static MOLAE_INLINE void read(typename Vectors<Lanes>::Floats& to, const Item* steps, int col) {
    typename Vectors<Lanes>::Halves halves;
    load(halves, steps + Of * kPackedCols + col);
    F16Weights<Lanes>::widen(to, __builtin_convertvector(halves, typename Vectors<Lanes>::Words));
  }
};

// One input for all columns.
template <int Lanes>
struct PlainInput {
  static MOLAE_INLINE void read(typename Vectors<Lanes>::Floats& to, const float& x) {
    for (int lane = 0; lane < Lanes; ++lane) to[lane] = x;
  }
};

#if defined(__x86_64__)
template <int Lanes>
struct PackedF16C {
  using Item = uint16_t;
  template <int Of>
  static MOLAE_INLINE void read(typename Vectors<Lanes>::Floats& to, const Item* steps, int col) {
    F16CWeights<Lanes>::template read<0>(to, steps + Of * kPackedCols + col);
  }
};

// By name: where an input fits into an instruction compilers read it anew for every column, which is more than the
// processor can load.
template <int Lanes>
struct BroadcastInput {
  static MOLAE_INLINE void read(typename Vectors<Lanes>::Floats& to, const float& x) {
    asm("vbroadcastss %1, %0" : "=v"(to) : "m"(x));
  }
};
#endif

// Requests for what is read next, at an even rate: some bytes with every two steps, of all blocks in turns. They go to
// the second cache, as the first has the weights at hand.
template <int Blocks>
class PieceAhead {
 public:
  MOLAE_INLINE PieceAhead(const PackedProduct& p, int64_t asks)
      : at_(p.next), block_bytes_(p.next_block_bytes), step_(p.next_bytes / asks) {}

  MOLAE_INLINE void ask() {
    due_ += step_;
    for (; due_ >= kLineBytes; due_ -= kLineBytes, at_ += kLineBytes) {
#pragma GCC unroll 3
      for (int i = 0; i < Blocks; ++i) __builtin_prefetch(at_ + i * block_bytes_, 0, 2);
    }
  }

 private:
  static constexpr int64_t kLineBytes = 64;

  const std::byte* at_;
  int64_t block_bytes_;
  int64_t step_;  // of a block
  int64_t due_ = 0;
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

// The same for the inputs of a pass: some steps that follow the piece, as most rows that need them are not yet in the
// caches when the first columns of a tile come. A line with every two steps suffices for them.
template <int R>
class InputsAhead {
 public:
  MOLAE_INLINE explicit InputsAhead(const PackedProduct& p) : x_(p.x), step_(p.inner), end_(p.inner + p.next_inner) {}

  MOLAE_INLINE void ask() {
    if (step_ >= end_) return;
    __builtin_prefetch(x_[row_] + step_, 0, 2);
    if (++row_ < R) return;
    row_ = 0;
    step_ += kLine;
  }

 private:
  static constexpr int64_t kLine = 16;  // floats

  const float* const* x_;
  int row_ = 0;
  int64_t step_;
  int64_t end_;
};

// R rows and V vectors of columns: all sums stay in registers, a weight is loaded once for all rows and an input once
// for all columns.
template <template <int> class Weights, template <int> class Input, int Lanes, int Blocks, int R, int V, class Ahead>
MOLAE_INLINE void multiply_columns(const PackedProduct& p, int col, Ahead& ahead, InputsAhead<R>& inputs_ahead) {
  using Floats = typename Vectors<Lanes>::Floats;
  using W = Weights<Lanes>;
  constexpr int kWidth = Blocks * kPackedCols;
  float* out = p.sums + col;
  Floats sums[R][V];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sums[i][v] = Floats{};
  }
  if (!p.first) {
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) load(sums[i][v], out + i * kWidth + v * Lanes);
    }
  }
  const float* x[R];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) x[i] = p.x[i];
  const auto* steps = reinterpret_cast<const typename W::Item*>(p.weights);
  const int64_t stride = p.block_bytes / static_cast<int64_t>(sizeof *steps);
  const auto add = [&]<int Of>(std::integral_constant<int, Of>, int64_t k) __attribute__((always_inline)) {
    Floats weights[V];
    read_again(steps);
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const int place = col + v * Lanes;
      W::template read<Of>(weights[v], steps + place / kPackedCols * stride, place % kPackedCols);
    }
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      Floats input;
      Input<Lanes>::read(input, x[i][k + Of]);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sums[i][v] += weights[v] * input;
    }
  };
  constexpr std::integral_constant<int, 0> kFirst{};
  constexpr std::integral_constant<int, 1> kSecond{};
  const int64_t whole = p.inner / 2 * 2;
  for (int64_t k = 0; k < whole; k += 2, steps += 2 * kPackedCols) {
    ahead.ask();
    inputs_ahead.ask();
    add(kFirst, k);
    add(kSecond, k);
  }
  if (whole != p.inner) add(kFirst, whole);
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) store(out + i * kWidth + v * Lanes, sums[i][v]);
  }
}

// Vectors of columns for so many rows, of those of a block: as many as have their sums in registers, beside a weight of
// each and an input.
constexpr int vectors_of(int lanes, int rows, int vectors) {
  if (lanes == 16) return vectors;
  if (vectors < 6) return 2;
  return rows <= 2 ? 6 : rows <= 4 ? 3 : 2;
}

constexpr int most_rows(int lanes) { return lanes == 16 ? PackedKernel::kMostRows : 6; }
constexpr int few_rows(int lanes) { return lanes == 16 ? 4 : 2; }

template <template <int> class Weights, template <int> class Input, int Lanes, int R, int Blocks>
MOLAE_INLINE void multiply_blocks(const PackedProduct& p) {
  constexpr int kWidth = Blocks * kPackedCols;
  constexpr int kVectors = vectors_of(Lanes, R, kWidth / Lanes);
  constexpr int kCols = kVectors * Lanes;
  using Item = typename Weights<Lanes>::Item;
  using Ahead = std::conditional_t<R <= few_rows(Lanes), RunAhead<Blocks, Item>, PieceAhead<Blocks>>;
  Ahead ahead(p, std::max<int64_t>(1, p.inner / 2 * (kWidth / kCols)));
  InputsAhead<R> inputs_ahead(p);
#pragma GCC unroll 3
  for (int col = 0; col < kWidth; col += kCols) {
    multiply_columns<Weights, Input, Lanes, Blocks, R, kVectors>(p, col, ahead, inputs_ahead);
  }
}

template <template <int> class Weights, template <int> class Input, int Lanes, int R>
MOLAE_INLINE void multiply_rows(const PackedProduct& p) {
  if constexpr (R > 1) {
    if (p.rows != R) return multiply_rows<Weights, Input, Lanes, R - 1>(p);
  }
  if (p.blocks == 3) return multiply_blocks<Weights, Input, Lanes, R, 3>(p);
  if (p.blocks == 2) return multiply_blocks<Weights, Input, Lanes, R, 2>(p);
  multiply_blocks<Weights, Input, Lanes, R, 1>(p);
}

#define MOLAE_PACKED(name, weights, input, lanes, attributes)        \
  attributes void name(const PackedProduct& product) {               \
    multiply_rows<weights, input, lanes, most_rows(lanes)>(product); \
  }

MOLAE_PACKED(plain_f32, PackedF32, PlainInput, 8, MOLAE_PLAIN)
MOLAE_PACKED(plain_bf16, PackedBF16, PlainInput, 8, MOLAE_PLAIN)
MOLAE_PACKED(plain_f16, PackedF16, PlainInput, 8, MOLAE_PLAIN)
constexpr PackedKernel kPlain = {most_rows(8), few_rows(8), plain_f32, plain_bf16, plain_f16};
#if defined(__x86_64__)
MOLAE_PACKED(avx2_f32, PackedF32, BroadcastInput, 8, MOLAE_AVX2)
MOLAE_PACKED(avx2_bf16, PackedBF16, BroadcastInput, 8, MOLAE_AVX2)
MOLAE_PACKED(avx2_f16, PackedF16C, BroadcastInput, 8, MOLAE_AVX2)
MOLAE_PACKED(avx512_f32, PackedF32, BroadcastInput, 16, MOLAE_AVX512)
MOLAE_PACKED(avx512_bf16, PackedBF16, BroadcastInput, 16, MOLAE_AVX512)
MOLAE_PACKED(avx512_f16, PackedF16C, BroadcastInput, 16, MOLAE_AVX512)
constexpr PackedKernel kAvx2 = {most_rows(8), few_rows(8), avx2_f32, avx2_bf16, avx2_f16};
constexpr PackedKernel kAvx512 = {most_rows(16), few_rows(16), avx512_f32, avx512_bf16, avx512_f16};
#endif

}  // namespace

const PackedKernel& packed_kernel() { return MOLAE_BEST_OF(kPlain, kAvx2, kAvx512); }

}  // namespace molae::cpu
