#pragma once

#include <cstdint>

// Vectors of the compiler: any width works on any processor, in as many registers as it takes.
namespace molae::cpu {

#define MOLAE_INLINE __attribute__((always_inline)) inline

typedef float Floats8 __attribute__((vector_size(32)));
typedef uint32_t Words8 __attribute__((vector_size(32)));
typedef int32_t Masks8 __attribute__((vector_size(32)));

constexpr int kLanes = 8;

template <class Vector>
MOLAE_INLINE void load(Vector& to, const void* from) {
  __builtin_memcpy(&to, from, sizeof to);
}

template <class Vector>
MOLAE_INLINE void store(void* to, const Vector& from) {
  __builtin_memcpy(to, &from, sizeof from);
}

MOLAE_INLINE float sum_of_lanes(const Floats8& sums) {
  float lanes[kLanes];
  __builtin_memcpy(lanes, &sums, sizeof lanes);
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

#if defined(__clang__)
#define MOLAE_SHUFFLE8(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define MOLAE_SHUFFLE8(a, b, ...) __builtin_shuffle(a, b, Masks8{__VA_ARGS__})
#endif

// Rows become columns.
MOLAE_INLINE void transpose(Floats8 (&v)[8]) {
  Floats8 pairs[8], quads[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = MOLAE_SHUFFLE8(v[i], v[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    pairs[i + 1] = MOLAE_SHUFFLE8(v[i], v[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    quads[i] = MOLAE_SHUFFLE8(pairs[i], pairs[i + 2], 0, 1, 8, 9, 4, 5, 12, 13);
    quads[i + 1] = MOLAE_SHUFFLE8(pairs[i], pairs[i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    quads[i + 2] = MOLAE_SHUFFLE8(pairs[i + 1], pairs[i + 3], 0, 1, 8, 9, 4, 5, 12, 13);
    quads[i + 3] = MOLAE_SHUFFLE8(pairs[i + 1], pairs[i + 3], 2, 3, 10, 11, 6, 7, 14, 15);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    v[i] = MOLAE_SHUFFLE8(quads[i], quads[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    v[i + 4] = MOLAE_SHUFFLE8(quads[i], quads[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}

}  // namespace molae::cpu
