#include "cpu/linear/packed_kernel.h"
#include "cpu/linear/packed_requests.h"
#include "cpu/linear/packed_weight.h"
#include "cpu/simd/vectors.h"
#include "cpu/system/instruction_sets.h"
#include "cpu/system/processor.h"

namespace molae::cpu {

#if defined(MOLAE_NAMES_INSTRUCTIONS)
namespace {

constexpr int kLanes16 = 16;
constexpr int kMostRows = 8;
constexpr int kFewRows = 4;
using Floats16 = Vectors<kLanes16>::Floats;

static_assert(kPackedCols == kLanes16);

// A pair of bf16 in all lanes.
MOLAE_INLINE void read_pair(Floats16& to, const uint32_t& pair) {
  asm volatile("vpbroadcastd %1, %0" : "=v"(to) : "m"(pair));
}

// sum += both products of the pairs of a lane, in f32; numbers below f32's least normal one count as 0.
MOLAE_INLINE void multiply_add_pairs(Floats16& sum, const Floats16& weights, const Floats16& input) {
  Floats16 value = sum;
  asm volatile("vdpbf16ps %1, %2, %0" : "+v"(value) : "v"(input), "v"(weights));
  sum = value;
}

// R rows against all columns of the blocks: all sums in registers, a pair of weights is loaded once for all rows.
template <int R, int Blocks, class Ahead>
MOLAE_INLINE void multiply_blocks(const PackedProduct& p) {
  constexpr int kWidth = Blocks * kPackedCols;
  Floats16 sums[R][Blocks];
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 3
    for (int v = 0; v < Blocks; ++v) {
      sums[i][v] = Floats16{};
      if (!p.first) load(sums[i][v], p.sums + i * p.sums_stride + v * kLanes16);
    }
  }
  const uint32_t* x[R];
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) x[i] = reinterpret_cast<const uint32_t*>(p.x[i]);
  const auto* weights = reinterpret_cast<const uint32_t*>(p.weights);
  Ahead ahead(p, 1);
  const int64_t pairs = (p.inner + 1) / 2;
  for (int64_t k = 0; k < pairs;) {
    ahead.ask();
    const int64_t end = std::min(pairs, k + ahead.steps() / 2);
    do {
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i) forget(x[i]);
      forget(weights);
      forget(k);
      Floats16 columns[Blocks];
#pragma GCC unroll 3
      for (int v = 0; v < Blocks; ++v) load(columns[v], weights + v * kLanes16);
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i) {
        Floats16 input;
        read_pair(input, x[i][k]);
#pragma GCC unroll 3
        for (int v = 0; v < Blocks; ++v) multiply_add_pairs(sums[i][v], columns[v], input);
      }
      weights += kWidth;
    } while (++k != end);
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 3
    for (int v = 0; v < Blocks; ++v) store(p.sums + i * p.sums_stride + v * kLanes16, sums[i][v]);
  }
}

template <int R, int Blocks>
MOLAE_INLINE void multiply_asking(const PackedProduct& p) {
  if constexpr (R <= kFewRows) {
    if (p.alone) return multiply_blocks<R, Blocks, RunAhead<Blocks, uint16_t>>(p);
  }
  // Passes of several have half of the most rows at least.
  if constexpr (R >= kMostRows / 2) multiply_blocks<R, Blocks, PieceAhead>(p);
}

template <int R>
MOLAE_INLINE void multiply_rows(const PackedProduct& p) {
  if constexpr (R > 1) {
    if (p.rows != R) return multiply_rows<R - 1>(p);
  }
  if (p.blocks == 3) return multiply_asking<R, 3>(p);
  if (p.blocks == 2) return multiply_asking<R, 2>(p);
  multiply_asking<R, 1>(p);
}

MOLAE_AVX512 void multiply_pairs(const PackedProduct& product) { multiply_rows<kMostRows>(product); }

}  // namespace

PackedKernel::Multiply pair_kernel() { return multiplies_pairs_fast() ? multiply_pairs : nullptr; }
#else
PackedKernel::Multiply pair_kernel() { return nullptr; }
#endif

}  // namespace molae::cpu
