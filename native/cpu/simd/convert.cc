#include "cpu/simd/convert.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "core/error.h"
#include "core/tensor/blocks.h"
#include "core/tensor/half.h"
#include "cpu/simd/multiversion.h"
#include "cpu/system/processor.h"

namespace molae {
namespace {

// Branch-free forms of core/tensor/half.h, which compilers vectorize.
inline float f16_to_f32_flat(uint16_t h) {
  const uint32_t magnitude = h & 0x7fffu;
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  const uint32_t special = 0x7f800000u | ((magnitude & 0x3ffu) << 13) | (magnitude > 0x7c00u ? 0x400000u : 0u);
  const uint32_t bits = magnitude >= 0x7c00u ? special : std::bit_cast<uint32_t>(scaled);
  return std::bit_cast<float>(bits | sign);
}

inline uint16_t f32_to_bf16_flat(float f) {
  const uint32_t bits = std::bit_cast<uint32_t>(f);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet = (bits >> 16) | 0x40u;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}

inline uint16_t f32_to_f16_flat(float f) {
  const uint32_t bits = std::bit_cast<uint32_t>(f);
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t subnormal = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t nan = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x477ff000u ? 0x7c00u : half;
  half = magnitude > 0x7f800000u ? nan : half;
  return static_cast<uint16_t>(half | ((bits >> 16) & 0x8000u));
}

MOLAE_MULTIVERSION void bf16_to_f32(const uint16_t* from, float* to, size_t count) {
  for (size_t i = 0; i < count; ++i) to[i] = molae::bf16_to_f32(from[i]);
}
MOLAE_MULTIVERSION void f16_to_f32_plain(const uint16_t* from, float* to, size_t count) {
  for (size_t i = 0; i < count; ++i) to[i] = f16_to_f32_flat(from[i]);
}
#if defined(__x86_64__)
__attribute__((target("avx,f16c"))) void f16_to_f32_f16c(const uint16_t* from, float* to, size_t count) {
  size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(halves));
  }
  for (; i < count; ++i) to[i] = f16_to_f32_flat(from[i]);
}

void f16_to_f32(const uint16_t* from, float* to, size_t count) {
  static const bool found = cpu::instructions() >= cpu::Instructions::Avx2;
  (found ? f16_to_f32_f16c : f16_to_f32_plain)(from, to, count);
}
#else
void f16_to_f32(const uint16_t* from, float* to, size_t count) { f16_to_f32_plain(from, to, count); }
#endif
MOLAE_MULTIVERSION void f32_to_bf16(const float* from, uint16_t* to, size_t count) {
  for (size_t i = 0; i < count; ++i) to[i] = f32_to_bf16_flat(from[i]);
}
MOLAE_MULTIVERSION void f32_to_f16(const float* from, uint16_t* to, size_t count) {
  for (size_t i = 0; i < count; ++i) to[i] = f32_to_f16_flat(from[i]);
}
MOLAE_MULTIVERSION void f32_to_f64(const float* from, double* to, size_t count) {
  for (size_t i = 0; i < count; ++i) to[i] = static_cast<double>(from[i]);
}
MOLAE_MULTIVERSION void f64_to_f32(const double* from, float* to, size_t count) {
  for (size_t i = 0; i < count; ++i) to[i] = static_cast<float>(from[i]);
}

// Whole blocks, and the start of one more.
MOLAE_MULTIVERSION void q8_to_f32(const Q8Block* from, float* to, size_t count) {
  for (size_t begin = 0; begin < count; begin += kBlock, ++from) {
    const float scale = f16_to_f32_flat(from->scale);
    const size_t length = std::min<size_t>(kBlock, count - begin);
    if (length == kBlock) {
      for (size_t i = 0; i < kBlock; ++i) to[begin + i] = scale * from->values[i];
    } else {
      for (size_t i = 0; i < length; ++i) to[begin + i] = scale * from->values[i];
    }
  }
}
MOLAE_MULTIVERSION void q4_to_f32(const Q4Block* from, float* to, size_t count) {
  constexpr size_t kHalf = kBlock / 2;
  for (size_t begin = 0; begin < count; begin += kBlock, ++from) {
    const float scale = f16_to_f32_flat(from->scale);
    float whole[kBlock];
    float* block = begin + kBlock <= count ? to + begin : whole;
    for (size_t i = 0; i < kHalf; ++i) block[i] = scale * ((from->pairs[i] & 15) - 8);
    for (size_t i = 0; i < kHalf; ++i) block[kHalf + i] = scale * ((from->pairs[i] >> 4) - 8);
    if (block == whole) std::memcpy(to + begin, whole, (count - begin) * sizeof(float));
  }
}

// Halves and f64 meet in f32, a piece at a time: exact on the way up. On the way down a value is rounded twice, which
// is off by one unit in the last place of the half for about one value in 2^13 (f16) or 2^16 (bf16), and harmless.
constexpr size_t kPiece = 4096;

template <class Unsigned>
int64_t first_with_full_exponent(const Unsigned* data, size_t count, Unsigned exponent) {
  for (size_t begin = 0; begin < count; begin += kPiece) {
    const size_t end = std::min(begin + kPiece, count);
    bool found = false;
    for (size_t i = begin; i < end; ++i) found |= (data[i] & exponent) == exponent;
    if (!found) continue;
    for (size_t i = begin; i < end; ++i) {
      if ((data[i] & exponent) == exponent) return static_cast<int64_t>(i);
    }
  }
  return -1;
}

}  // namespace

template <>
void widen_elements<float>(DType dtype, const void* from, float* to, size_t count) {
  switch (dtype) {
    case DType::F32:
      std::memcpy(to, from, count * sizeof(float));
      return;
    case DType::F64:
      return f64_to_f32(static_cast<const double*>(from), to, count);
    case DType::BF16:
      return bf16_to_f32(static_cast<const uint16_t*>(from), to, count);
    case DType::F16:
      return f16_to_f32(static_cast<const uint16_t*>(from), to, count);
    case DType::Q8:
      return q8_to_f32(static_cast<const Q8Block*>(from), to, count);
    case DType::Q4:
      return q4_to_f32(static_cast<const Q4Block*>(from), to, count);
    case DType::I32:
      fail(ErrorCode::DTypeMismatch, "i32 cannot be used as a number");
  }
}

template <>
void widen_elements<double>(DType dtype, const void* from, double* to, size_t count) {
  if (dtype == DType::F64) {
    std::memcpy(to, from, count * sizeof(double));
    return;
  }
  if (dtype == DType::F32) return f32_to_f64(static_cast<const float*>(from), to, count);
  float piece[kPiece];
  for (size_t begin = 0; begin < count; begin += kPiece) {
    const size_t length = std::min(kPiece, count - begin);
    widen_elements<float>(dtype, static_cast<const std::byte*>(from) + row_bytes(dtype, begin), piece, length);
    f32_to_f64(piece, to + begin, length);
  }
}

void convert_elements(DType from_dtype, const void* from, DType to_dtype, void* to, size_t count) {
  if (from_dtype == to_dtype) {
    std::memcpy(to, from, row_bytes(to_dtype, count));
    return;
  }
  if (to_dtype == DType::F32) return widen_elements(from_dtype, from, static_cast<float*>(to), count);
  if (to_dtype == DType::F64) return widen_elements(from_dtype, from, static_cast<double*>(to), count);
  if (!is_half(to_dtype)) fail(ErrorCode::DTypeMismatch, "Cannot convert floats to ", dtype_name(to_dtype));
  float piece[kPiece];
  for (size_t begin = 0; begin < count; begin += kPiece) {
    const size_t length = std::min(kPiece, count - begin);
    const auto* source = static_cast<const std::byte*>(from) + row_bytes(from_dtype, begin);
    auto* target = static_cast<uint16_t*>(to) + begin;
    widen_elements(from_dtype, source, piece, length);
    if (to_dtype == DType::BF16) {
      f32_to_bf16(piece, target, length);
    } else {
      f32_to_f16(piece, target, length);
    }
  }
}

int64_t first_non_finite(DType dtype, const void* data, size_t count) {
  switch (dtype) {
    case DType::F32:
      return first_with_full_exponent<uint32_t>(static_cast<const uint32_t*>(data), count, 0x7f800000u);
    case DType::F64:
      return first_with_full_exponent<uint64_t>(static_cast<const uint64_t*>(data), count, 0x7ff0000000000000ull);
    case DType::BF16:
      return first_with_full_exponent<uint16_t>(static_cast<const uint16_t*>(data), count, 0x7f80u);
    case DType::F16:
      return first_with_full_exponent<uint16_t>(static_cast<const uint16_t*>(data), count, 0x7c00u);
    case DType::I32:
      return -1;
    case DType::Q8:
    case DType::Q4:
      fail(ErrorCode::DTypeMismatch, "Expected a floating dtype but received ", dtype_name(dtype));
  }
  return -1;
}

}  // namespace molae
