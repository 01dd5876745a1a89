#pragma once

#include <math.h>

#include <cstdint>
#include <cstring>

#include "core/tensor/dtype.h"
#include "cuda/logic/host_device.h"

// The 16-bit formats as types, and conversions that give the same bits as core/tensor/half.h.
namespace molae::cuda {

struct BF16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

template <class To, class From>
MOLAE_HD To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

MOLAE_HD float to_float(float value) { return value; }
MOLAE_HD float to_float(double value) { return static_cast<float>(value); }
MOLAE_HD float to_float(BF16 value) { return bits_as<float>(static_cast<uint32_t>(value.bits) << 16); }
MOLAE_HD float to_float(F16 value) {
  const uint32_t magnitude = value.bits & 0x7fffu;
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const float scaled = bits_as<float>(magnitude << 13) * 0x1p112f;
  const uint32_t special = 0x7f800000u | ((magnitude & 0x3ffu) << 13) | (magnitude > 0x7c00u ? 0x400000u : 0u);
  return bits_as<float>(sign | (magnitude >= 0x7c00u ? special : bits_as<uint32_t>(scaled)));
}

template <class To>
struct FromFloat;
template <>
struct FromFloat<float> {
  static MOLAE_HD float of(float value) { return value; }
};
template <>
struct FromFloat<double> {
  static MOLAE_HD double of(float value) { return static_cast<double>(value); }
};
template <>
struct FromFloat<BF16> {
  static MOLAE_HD BF16 of(float value) {
    const uint32_t bits = bits_as<uint32_t>(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
    return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
  }
};
template <>
struct FromFloat<F16> {
  static MOLAE_HD F16 of(float value) {
    const uint32_t bits = bits_as<uint32_t>(value);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    uint32_t half;
    if (magnitude > 0x7f800000u) {
      half = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
    } else if (magnitude >= 0x477ff000u) {  // rounds to infinity from 65520 on
      half = 0x7c00u;
    } else if (magnitude < 0x38800000u) {  // subnormal: let the adder round at 2^-24
      half = bits_as<uint32_t>(bits_as<float>(magnitude) + 0.5f) - 0x3f000000u;
    } else {
      half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    }
    return {static_cast<uint16_t>(half | sign)};
  }
};

// Between any two formats; like on the CPU, halves and f64 meet in f32.
template <class To, class From>
struct Convert {
  static MOLAE_HD To of(From from) { return FromFloat<To>::of(to_float(from)); }
};
template <class T>
struct Convert<T, T> {
  static MOLAE_HD T of(T from) { return from; }
};

template <class To, class From>
MOLAE_HD To convert(From from) {
  return Convert<To, From>::of(from);
}

// Convert for products, where nobody asks for the payload of a NaN: a half by the one instruction that the GPU has.
template <class To, class From>
MOLAE_HD To widened(From from) {
  return Convert<To, From>::of(from);
}
template <>
MOLAE_HD float widened<float, F16>(F16 from) {
#ifdef __CUDA_ARCH__
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(from.bits));
  return wide;
#else
  return to_float(from);
#endif
}

// And the way back, for results that are rounded once: a NaN becomes some NaN.
template <class To, class From>
MOLAE_HD To narrowed(From from) {
  return Convert<To, From>::of(from);
}
template <>
MOLAE_HD BF16 narrowed<BF16, float>(float from) {
#ifdef __CUDA_ARCH__
  BF16 half;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(half.bits) : "f"(from));
  return half;
#else
  return FromFloat<BF16>::of(from);
#endif
}
template <>
MOLAE_HD F16 narrowed<F16, float>(float from) {
#ifdef __CUDA_ARCH__
  F16 half;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half.bits) : "f"(from));
  return half;
#else
  return FromFloat<F16>::of(from);
#endif
}

// Neighbours that are read and written together: up to 16 bytes at a time.
template <class Item, int kCount>
struct alignas(sizeof(Item) * kCount < 16 ? sizeof(Item) * kCount : 16) Pack {
  Item items[kCount];
};

template <class T>
struct alignas(2 * sizeof(T)) Pair {
  T items[2];
};

template <class To, class From>
MOLAE_HD Pair<To> narrowed_pair(From first, From second) {
  return {{narrowed<To>(first), narrowed<To>(second)}};
}
// Both by one instruction, whose first operand is the upper half of what it gives.
template <>
MOLAE_HD Pair<BF16> narrowed_pair<BF16, float>(float first, float second) {
#ifdef __CUDA_ARCH__
  uint32_t bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
  return bits_as<Pair<BF16>>(bits);
#else
  return {{narrowed<BF16>(first), narrowed<BF16>(second)}};
#endif
}
template <>
MOLAE_HD Pair<F16> narrowed_pair<F16, float>(float first, float second) {
#ifdef __CUDA_ARCH__
  uint32_t bits;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
  return bits_as<Pair<F16>>(bits);
#else
  return {{narrowed<F16>(first), narrowed<F16>(second)}};
#endif
}

// Element `index` of an array whose dtype is known at run time only.
template <class To>
MOLAE_HD To load_as(DType dtype, const void* data, int64_t index) {
  switch (dtype) {
    case DType::F64:
      return convert<To>(static_cast<const double*>(data)[index]);
    case DType::F32:
      return convert<To>(static_cast<const float*>(data)[index]);
    case DType::F16:
      return convert<To>(static_cast<const F16*>(data)[index]);
    default:
      return convert<To>(static_cast<const BF16*>(data)[index]);
  }
}

template <class From>
MOLAE_HD void store_as(DType dtype, void* data, int64_t index, From value) {
  switch (dtype) {
    case DType::F64:
      static_cast<double*>(data)[index] = convert<double>(value);
      return;
    case DType::F32:
      static_cast<float*>(data)[index] = convert<float>(value);
      return;
    case DType::F16:
      static_cast<F16*>(data)[index] = convert<F16>(value);
      return;
    default:
      static_cast<BF16*>(data)[index] = convert<BF16>(value);
      return;
  }
}

// Together where `to` is aligned for that, else one by one.
template <class To, class From, int kCount>
MOLAE_HD void store_pack(To* to, const Pack<From, kCount>& values) {
  Pack<To, kCount> pack;
  MOLAE_UNROLL
  for (int i = 0; i < kCount; ++i) pack.items[i] = convert<To>(values.items[i]);
  if (reinterpret_cast<uintptr_t>(to) % alignof(Pack<To, kCount>) == 0) {
    *reinterpret_cast<Pack<To, kCount>*>(to) = pack;
    return;
  }
  MOLAE_UNROLL
  for (int i = 0; i < kCount; ++i) to[i] = pack.items[i];
}

// Elements from `index` on.
template <class From, int kCount>
MOLAE_HD void store_pack_as(DType dtype, void* data, int64_t index, const Pack<From, kCount>& values) {
  switch (dtype) {
    case DType::F64:
      return store_pack(static_cast<double*>(data) + index, values);
    case DType::F32:
      return store_pack(static_cast<float*>(data) + index, values);
    case DType::F16:
      return store_pack(static_cast<F16*>(data) + index, values);
    default:
      return store_pack(static_cast<BF16*>(data) + index, values);
  }
}

template <class T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::F32;
};
template <>
struct DTypeOf<double> {
  static constexpr DType value = DType::F64;
};
template <>
struct DTypeOf<F16> {
  static constexpr DType value = DType::F16;
};
template <>
struct DTypeOf<BF16> {
  static constexpr DType value = DType::BF16;
};

// What products of T are summed in.
template <class T>
struct SumOf {
  using type = float;
};
template <>
struct SumOf<double> {
  using type = double;
};
template <class T>
using Sum = typename SumOf<T>::type;

}  // namespace molae::cuda
