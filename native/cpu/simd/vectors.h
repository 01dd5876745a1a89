#pragma once

#include <cstdint>

// Vectors of the compiler: any width works on any processor, in as many registers as it takes.
namespace molae::cpu {

#define MOLAE_INLINE __attribute__((always_inline)) inline

// Instructions by name, in assembly: always_inline functions cannot ask for an instruction set that their callers lack.
// Clang looks at them before they are inlined, and refuses them: with it kernels say what they want without names.
#if defined(__x86_64__) && !defined(__clang__)
#define MOLAE_NAMES_INSTRUCTIONS
#endif

template <int Lanes>
struct Vectors {
  typedef float Floats __attribute__((vector_size(Lanes * 4)));
  typedef uint32_t Words __attribute__((vector_size(Lanes * 4)));
  typedef int32_t Masks __attribute__((vector_size(Lanes * 4)));
  typedef uint16_t Halves __attribute__((vector_size(Lanes * 2), aligned(2), may_alias));
};

typedef Vectors<4>::Floats Floats4;
typedef Vectors<8>::Floats Floats8;
typedef Vectors<8>::Words Words8;
typedef Vectors<8>::Masks Masks8;

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

// Four elements each.
MOLAE_INLINE void load_halves(Floats8& to, const float* first, const float* second) {
#if defined(__clang__)
  Floats4 halves[2];
  load(halves[0], first);
  load(halves[1], second);
  to = __builtin_shufflevector(halves[0], halves[1], 0, 1, 2, 3, 4, 5, 6, 7);
#else  // which would load each half into a register first
  __extension__ typedef __int128 Half;
  typedef Half Halves __attribute__((vector_size(32)));
  Half halves[2];
  load(halves[0], first);
  load(halves[1], second);
  to = __builtin_bit_cast(Floats8, Halves{halves[0], halves[1]});
#endif
}

MOLAE_INLINE void store_halves(float* first, float* second, const Floats8& from) {
  Floats4 halves[2];
  __builtin_memcpy(halves, &from, sizeof from);
  store(first, halves[0]);
  store(second, halves[1]);
}

// Rows of four elements become columns, those in the first halves and those in the second ones.
MOLAE_INLINE void transpose_halves(Floats8 (&v)[4]) {
  const Floats8 first = MOLAE_SHUFFLE8(v[0], v[1], 0, 8, 1, 9, 4, 12, 5, 13);
  const Floats8 second = MOLAE_SHUFFLE8(v[2], v[3], 0, 8, 1, 9, 4, 12, 5, 13);
  const Floats8 third = MOLAE_SHUFFLE8(v[0], v[1], 2, 10, 3, 11, 6, 14, 7, 15);
  const Floats8 fourth = MOLAE_SHUFFLE8(v[2], v[3], 2, 10, 3, 11, 6, 14, 7, 15);
  v[0] = MOLAE_SHUFFLE8(first, second, 0, 1, 8, 9, 4, 5, 12, 13);
  v[1] = MOLAE_SHUFFLE8(first, second, 2, 3, 10, 11, 6, 7, 14, 15);
  v[2] = MOLAE_SHUFFLE8(third, fourth, 0, 1, 8, 9, 4, 5, 12, 13);
  v[3] = MOLAE_SHUFFLE8(third, fourth, 2, 3, 10, 11, 6, 7, 14, 15);
}

}  // namespace molae::cpu
