#include "cpu/linear/packed_kernel.h"

#include <algorithm>
#include <type_traits>

#include "cpu/linear/packed_requests.h"
#include "cpu/linear/packed_weight.h"
#include "cpu/linear/stream_weights.h"
#include "cpu/simd/vectors.h"
#include "cpu/system/instruction_sets.h"

namespace molae::cpu {
namespace {

// How packed weights become floats: a vector of columns from `col` on, of the first or the second of two steps of a
// group that is so many columns wide.
template <int Lanes>
struct PackedF32 {
  using Item = float;
  template <int Of, int Width>
  static MOLAE_INLINE void read(typename Vectors<Lanes>::Floats& to, const Item* steps, int col) {
    load(to, steps + Of * Width + col);
  }
};

template <int Lanes>
struct PackedBF16 {
  using Item = uint16_t;
  template <int Of, int Width>
  static MOLAE_INLINE void read(typename Vectors<Lanes>::Floats& to, const Item* steps, int col) {
    BF16Weights<Lanes>::template read<Of>(to, steps + 2 * col);
  }
};

template <int Lanes>
struct PackedF16 {
  using Item = uint16_t;
  template <int Of, int Width>
  static MOLAE_INLINE void read(typename Vectors<Lanes>::Floats& to, const Item* steps, int col) {
    const auto* halves = reinterpret_cast<const typename Vectors<Lanes>::Halves*>(steps + Of * Width + col);
    F16Weights<Lanes>::widen(to, __builtin_convertvector(*halves, typename Vectors<Lanes>::Words));
  }
};

// One input for all columns, and its products.
template <int Lanes>
struct PlainInput {
  using Floats = typename Vectors<Lanes>::Floats;

  static MOLAE_INLINE void read(Floats& to, const float& x) {
    for (int lane = 0; lane < Lanes; ++lane) to[lane] = x;
  }
  static MOLAE_INLINE void multiply_add(Floats& sum, const Floats& weights, const Floats& input) {
    sum += weights * input;
  }
};

#if defined(MOLAE_NAMES_INSTRUCTIONS)
template <int Lanes>
struct PackedF16C {
  using Item = uint16_t;
  template <int Of, int Width>
  static MOLAE_INLINE void read(typename Vectors<Lanes>::Floats& to, const Item* steps, int col) {
    F16CWeights<Lanes>::template read<0>(to, steps + Of * Width + col);
  }
};

// The same with the mask in memory: sixteen registers are taken, and where the mask had one, sums went through memory.
template <int Lanes>
struct PackedBF16Masked {
  using Item = uint16_t;
  template <int Of, int Width>
  static MOLAE_INLINE void read(typename Vectors<Lanes>::Floats& to, const Item* steps, int col) {
    if constexpr (Of == 0) {
      BF16Weights<Lanes>::template read<0>(to, steps + 2 * col);
    } else {
      load(to, steps + 2 * col);
      asm("vandps %1, %0, %0" : "+x"(to) : "m"(kUpperHalves));
    }
  }

 private:
  static constexpr typename Vectors<Lanes>::Words kUpperHalves = typename Vectors<Lanes>::Words{} + 0xffff0000u;
};

// In this order: where an input fits into an instruction compilers read it anew for every column, which is
// more than the processor can load; they mix up rows, and run out of registers.
template <int Lanes>
struct BroadcastInput {
  using Floats = typename Vectors<Lanes>::Floats;
  static MOLAE_INLINE void read(Floats& to, const float& x) { asm volatile("vbroadcastss %1, %0" : "=v"(to) : "m"(x)); }
  static MOLAE_INLINE void multiply_add(Floats& sum, const Floats& weights, const Floats& input) {
    Floats value = sum;
    asm volatile("vfmadd231ps %1, %2, %0" : "+v"(value) : "v"(weights), "v"(input));
    sum = value;
  }
};
#else
template <int Lanes>
using PackedF16C = PackedF16<Lanes>;
template <int Lanes>
using PackedBF16Masked = PackedBF16<Lanes>;
template <int Lanes>
using BroadcastInput = PlainInput<Lanes>;
#endif

// What becomes of weights once they are floats: nothing.
struct Used {
  MOLAE_INLINE explicit Used(const PackedProduct&) {}
  template <class Floats>
  MOLAE_INLINE void keep(int, const Floats&) {}
  MOLAE_INLINE void step(int) {}
};

// Or they are stored for the passes that follow, in place of widening them anew. With AVX-512 such a pass of four rows
// takes a sixth more time than one that only uses them, of eight a hundredth.
class Kept {
 public:
  MOLAE_INLINE explicit Kept(const PackedProduct& p) : to_(p.kept) {}

  template <class Floats>
  MOLAE_INLINE void keep(int col, const Floats& weights) {
    store(to_ + col, weights);
  }
  MOLAE_INLINE void step(int width) { to_ += width; }

 private:
  float* to_;
};

// R rows and V vectors of columns: all sums stay in registers, a weight is loaded once for all rows and an input once
// for all columns.
template <template <int> class Weights, template <int> class Input, class Widened, int Lanes, int Blocks, int R, int V,
          class Ahead>
MOLAE_INLINE void multiply_columns(const PackedProduct& p, int col, Ahead& ahead) {
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
      for (int v = 0; v < V; ++v) load(sums[i][v], out + i * p.sums_stride + v * Lanes);
    }
  }
  const float* x[R];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) x[i] = p.x[i];
  const auto* steps = reinterpret_cast<const typename W::Item*>(p.weights);
  Widened widened(p);
  int64_t k = 0;
  const auto add = [&]<int Of>(std::integral_constant<int, Of>) __attribute__((always_inline)) {
    const auto read = [&](Floats & weights, int v) __attribute__((always_inline)) {
      W::template read<Of, kWidth>(weights, steps, col + v * Lanes);
      widened.keep(col + v * Lanes, weights);
    };
    if constexpr (R < V) {  // fewer inputs than weights of a step: those wait in registers
      Floats inputs[R];
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i) Input<Lanes>::read(inputs[i], x[i][k + Of]);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        Floats weights;
        read(weights, v);
#pragma GCC unroll 16
        for (int i = 0; i < R; ++i) Input<Lanes>::multiply_add(sums[i][v], weights, inputs[i]);
      }
    } else {
      Floats weights[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) read(weights[v], v);
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i) {
        Floats input;
        Input<Lanes>::read(input, x[i][k + Of]);
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) Input<Lanes>::multiply_add(sums[i][v], weights[v], input);
      }
    }
    widened.step(kWidth);
  };
  constexpr std::integral_constant<int, 0> kFirst{};
  constexpr std::integral_constant<int, 1> kSecond{};
  // What asks ahead stays out of the innermost loop, whose addresses need the registers.
  const int64_t whole = p.inner / 2 * 2;
  while (k < whole) {
    ahead.ask();
    if (col == 0) ask_for_inputs<R>(p, k, ahead.steps());
    const int64_t end = k + std::min(whole - k, ahead.steps());
    do {
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i) forget(x[i]);
      forget(steps);
      forget(k);
      add(kFirst);
      add(kSecond);
      steps += 2 * kWidth;
      k += 2;
    } while (k != end);
  }
  if (p.inner % 2 != 0) add(kFirst);
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) store(out + i * p.sums_stride + v * Lanes, sums[i][v]);
  }
}

// Vectors of columns for so many rows, of those of a group: as many as have their sums in registers, beside a weight of
// each and an input, and what widening takes.
constexpr int vectors_of(int lanes, int rows, int vectors, bool widens) {
  if (lanes == 16) return vectors;
  if (vectors < 6) return 2;
  return rows <= 2 ? 6 : rows <= (widens ? 3 : 4) ? 3 : 2;
}

constexpr int most_rows(int lanes) { return lanes == 16 ? PackedKernel::kMostRows : 6; }
constexpr int few_rows(int lanes) { return lanes == 16 ? 4 : 2; }

// Passes have so many rows at least where there are several.
constexpr int least_rows(int lanes) { return most_rows(lanes) / 2; }

template <template <int> class Weights, template <int> class Input, class Widened, int Lanes, int R, int Blocks,
          class Ahead>
MOLAE_INLINE void multiply_blocks(const PackedProduct& p) {
  constexpr int kWidth = Blocks * kPackedCols;
  constexpr bool kWidens = !std::is_same_v<typename Weights<Lanes>::Item, float>;
  constexpr int kVectors = vectors_of(Lanes, R, kWidth / Lanes, kWidens);
  constexpr int kCols = kVectors * Lanes;
  Ahead ahead(p, kWidth / kCols);
#pragma GCC unroll 3
  for (int col = 0; col < kWidth; col += kCols) {
    multiply_columns<Weights, Input, Widened, Lanes, Blocks, R, kVectors>(p, col, ahead);
  }
}

// With the requests that suit the rows, which are those of all passes or of one of several.
template <template <int> class Weights, template <int> class Input, class Widened, int Lanes, int R, int Blocks>
MOLAE_INLINE void multiply_asking(const PackedProduct& p) {
  using Run = RunAhead<Blocks, typename Weights<Lanes>::Item>;
  constexpr bool kFew = R <= few_rows(Lanes) && std::is_same_v<Widened, Used>;
  constexpr bool kMayShare = R >= least_rows(Lanes) && std::is_same_v<typename Weights<Lanes>::Item, float>;
  if constexpr (kFew && !kMayShare) {
    multiply_blocks<Weights, Input, Widened, Lanes, R, Blocks, Run>(p);
  } else if (kFew && p.alone) {
    multiply_blocks<Weights, Input, Widened, Lanes, R, Blocks, Run>(p);
  } else {
    multiply_blocks<Weights, Input, Widened, Lanes, R, Blocks, PieceAhead>(p);
  }
}

template <template <int> class Weights, template <int> class Input, class Widened, int Lanes, int R, int Least>
MOLAE_INLINE void multiply_rows(const PackedProduct& p) {
  if constexpr (R > Least) {
    if (p.rows != R) return multiply_rows<Weights, Input, Widened, Lanes, R - 1, Least>(p);
  }
  if (p.blocks == 3) return multiply_asking<Weights, Input, Widened, Lanes, R, 3>(p);
  if (p.blocks == 2) return multiply_asking<Weights, Input, Widened, Lanes, R, 2>(p);
  multiply_asking<Weights, Input, Widened, Lanes, R, 1>(p);
}

#define MOLAE_PACKED(name, weights, input, lanes, attributes)                 \
  attributes void name(const PackedProduct& product) {                        \
    multiply_rows<weights, input, Used, lanes, most_rows(lanes), 1>(product); \
  }

// Where others follow, a pass has half of the most rows at least.
#define MOLAE_PACKED_HALVES(name, weights, input, lanes, attributes)                          \
  MOLAE_PACKED(name, weights, input, lanes, attributes)                                       \
  attributes void name##_keep(const PackedProduct& product) {                                 \
    multiply_rows<weights, input, Kept, lanes, most_rows(lanes), least_rows(lanes)>(product); \
  }

MOLAE_PACKED(plain_f32, PackedF32, PlainInput, 8, MOLAE_PLAIN)
MOLAE_PACKED_HALVES(plain_bf16, PackedBF16, PlainInput, 8, MOLAE_PLAIN)
MOLAE_PACKED_HALVES(plain_f16, PackedF16, PlainInput, 8, MOLAE_PLAIN)
constexpr PackedKernel kPlain = {
    most_rows(8), 4, few_rows(8), plain_f32, {plain_bf16, plain_bf16_keep}, {plain_f16, plain_f16_keep}};
#if defined(__x86_64__)
MOLAE_PACKED(avx2_f32, PackedF32, BroadcastInput, 8, MOLAE_AVX2)
MOLAE_PACKED_HALVES(avx2_bf16, PackedBF16Masked, BroadcastInput, 8, MOLAE_AVX2)
MOLAE_PACKED_HALVES(avx2_f16, PackedF16C, BroadcastInput, 8, MOLAE_AVX2)
MOLAE_PACKED(avx512_f32, PackedF32, BroadcastInput, 16, MOLAE_AVX512)
MOLAE_PACKED_HALVES(avx512_bf16, PackedBF16, BroadcastInput, 16, MOLAE_AVX512)
MOLAE_PACKED_HALVES(avx512_f16, PackedF16C, BroadcastInput, 16, MOLAE_AVX512)
constexpr PackedKernel kAvx2 = {
    most_rows(8), 4, few_rows(8), avx2_f32, {avx2_bf16, avx2_bf16_keep}, {avx2_f16, avx2_f16_keep}};
constexpr PackedKernel kAvx512 = {most_rows(16),
                                  most_rows(16),
                                  few_rows(16),
                                  avx512_f32,
                                  {avx512_bf16, avx512_bf16_keep},
                                  {avx512_f16, avx512_f16_keep}};
#endif

}  // namespace

const PackedKernel& packed_kernel() { return MOLAE_BEST_OF(kPlain, kAvx2, kAvx512); }

}  // namespace molae::cpu
