#pragma once

#include <bit>
#include <cstdint>

#include "core/tensor/half.h"
#include "cpu/simd/vectors.h"

// How streamed weights become floats, a pair of vectors at a time. Of pairs of halves the first vector has the even and
// the second the odd ones: the inputs are brought into the same order once (kSplit), which is cheaper than ordering
// every weight.
namespace molae::cpu {

template <int Lanes>
struct F32Weights {
  using Item = float;
  static constexpr bool kSplit = false;
  using Floats = typename Vectors<Lanes>::Floats;
  template <int Of>
  static MOLAE_INLINE void read(Floats& to, const float* pair) {
    load(to, pair + Of * Lanes);
  }
  static float one(float w) { return w; }
};

template <int Lanes>
struct BF16Weights {
  using Item = uint16_t;
  static constexpr bool kSplit = true;
  using Floats = typename Vectors<Lanes>::Floats;
  template <int Of>
  static MOLAE_INLINE void read(Floats& to, const uint16_t* pair) {
    typename Vectors<Lanes>::Words words;
    load(words, pair);
    to = std::bit_cast<Floats>(Of == 0 ? words << 16 : words & 0xffff0000u);
  }
  static float one(uint16_t w) { return bf16_to_f32(w); }
};

template <int Lanes>
struct F16Weights {
  using Item = uint16_t;
  static constexpr bool kSplit = true;
  using Floats = typename Vectors<Lanes>::Floats;
  using Words = typename Vectors<Lanes>::Words;
  using Masks = typename Vectors<Lanes>::Masks;
  template <int Of>
  static MOLAE_INLINE void read(Floats& to, const uint16_t* pair) {
    Words words;
    load(words, pair);
    widen(to, Of == 0 ? words & 0xffffu : words >> 16);
  }
  static MOLAE_INLINE void widen(Floats& to, const Words& bits) {
    const Words magnitude = bits & 0x7fffu;
    const Floats scaled = std::bit_cast<Floats>(magnitude << 13) * 0x1p112f;  // moves the exponent, subnormals too
    const Words special = std::bit_cast<Words>(std::bit_cast<Masks>(magnitude) >= 0x7c00) & 0x7f800000u;
    to = std::bit_cast<Floats>(std::bit_cast<Words>(scaled) | special | ((bits & 0x8000u) << 16));
  }
  static float one(uint16_t w) { return f16_to_f32(w); }
};

#if defined(MOLAE_NAMES_INSTRUCTIONS)
// By the instruction for it.
template <int Lanes>
struct F16CWeights {
  using Item = uint16_t;
  static constexpr bool kSplit = false;
  using Floats = typename Vectors<Lanes>::Floats;
  template <int Of>
  static MOLAE_INLINE void read(Floats& to, const uint16_t* pair) {
    const auto* halves = reinterpret_cast<const typename Vectors<Lanes>::Halves*>(pair + Of * Lanes);
    asm("vcvtph2ps %1, %0" : "=v"(to) : "m"(*halves));
  }
  static float one(uint16_t w) { return f16_to_f32(w); }
};
#else
template <int Lanes>
using F16CWeights = F16Weights<Lanes>;
#endif

}  // namespace molae::cpu
