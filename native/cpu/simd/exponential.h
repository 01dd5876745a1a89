#pragma once

#include <bit>
#include <cstdint>

#include "cpu/simd/vectors.h"

namespace molae::cpu {

// exp without branches or calls, so that loops over it become vector code; within 2 units in the last place. Near the
// ends of f32's range it is infinity from 88.38 on, and what it is at -87 below that. Powers of two by the exponent's
// bits, the rest by the series.
MOLAE_INLINE float exp_flat(float x) {
  x = x < 89.0f ? x : 89.0f;  // 2^128: the bits of infinity
  x = x > -87.0f ? x : -87.0f;
  const float shifted = x * 1.44269504f + 0x1.8p23f;  // rounds: the integer ends up in the low bits
  const float n = shifted - 0x1.8p23f;
  const float r = (x - n * 0.693145751953125f) - n * 1.42860682030941723e-6f;  // ln 2 in two parts
  float series = 1.0f / 5040;
  series = series * r + 1.0f / 720;
  series = series * r + 1.0f / 120;
  series = series * r + 1.0f / 24;
  series = series * r + 1.0f / 6;
  series = series * r + 0.5f;
  series = series * r + 1.0f;
  series = series * r + 1.0f;
  return series * std::bit_cast<float>((std::bit_cast<uint32_t>(shifted) + 127) << 23);
}

}  // namespace molae::cpu
