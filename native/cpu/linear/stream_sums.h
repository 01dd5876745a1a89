#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/simd/vectors.h"

// The sums of streamed weights: vectors while they run, one number each in the end.
namespace molae::cpu {

// Columns whose sums are finished together: a multiple of what any pass takes.
constexpr int64_t kSumCols = 24;

// The running sums of the columns of a group, row by row, in the order in which columns are multiplied. With the first
// piece they begin at 0.
template <class Floats>
struct Sums {
  Floats* data;
  bool begun;

  Sums from(int64_t row, int64_t place) const { return {data + row * kSumCols + place, begun}; }
};

// C columns of a group are multiplied together, and lie apart: `apart` runs of neighbours, of which each pass takes the
// next. So memory sees C long streams. Columns side by side share pages where rows are shorter, and a processor seems
// to look ahead along one stream in a page: on a Xeon, rows of 1408 bytes took a sixth more time side by side. What is
// left of a group is multiplied one by one.
template <int C>
MOLAE_INLINE int64_t place_of(int64_t col, int64_t apart) {
  return col < apart * C ? col % apart * C + col / apart : col;
}

// Those of R rows and C columns in registers, as they were left.
template <int R, int C, class Floats>
MOLAE_INLINE void begin(Floats (&sums)[R][C], const Sums<Floats>& all) {
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < C; ++j) sums[i][j] = Floats{};
  }
  if (!all.begun) return;
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < C; ++j) sums[i][j] = all.data[i * kSumCols + j];
  }
}

// And as they are left.
template <int R, int C, class Floats>
MOLAE_INLINE void keep(const Floats (&sums)[R][C], const Sums<Floats>& all) {
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < C; ++j) all.data[i * kSumCols + j] = sums[i][j];
  }
}

// The sums of the lanes of eight vectors: two become one, which has the sums of pairs of lanes of both, and so on.
MOLAE_INLINE void sum_lanes(const Vectors<8>::Floats* from, Floats8& to) {
  Floats8 pairs[4], quads[2];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const Floats8 &a = from[2 * i], &b = from[2 * i + 1];
    pairs[i] = MOLAE_SHUFFLE8(a, b, 0, 8, 1, 9, 4, 12, 5, 13) + MOLAE_SHUFFLE8(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const Floats8 &a = pairs[2 * i], &b = pairs[2 * i + 1];
    quads[i] = MOLAE_SHUFFLE8(a, b, 0, 1, 8, 9, 4, 5, 12, 13) + MOLAE_SHUFFLE8(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
  }
  to = MOLAE_SHUFFLE8(quads[0], quads[1], 0, 1, 2, 3, 8, 9, 10, 11) +
       MOLAE_SHUFFLE8(quads[0], quads[1], 4, 5, 6, 7, 12, 13, 14, 15);
}

MOLAE_INLINE void sum_lanes(const Vectors<16>::Floats* from, Floats8& to) {
  Floats8 v[8];
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) {
    Floats8 halves[2];
    __builtin_memcpy(halves, from + j, sizeof halves);
    v[j] = halves[0] + halves[1];
  }
  sum_lanes(v, to);
}

// The sums of a row's columns, at most a group of them. `Apart` is a number that the compiler knows, or not.
template <int Lanes, int C, class Apart>
MOLAE_INLINE void finish_row(const typename Vectors<Lanes>::Floats* sums, int64_t cols, Apart apart, bool first,
                             float* out) {
  for (int64_t j = 0; j < cols; j += 8) {
    const int64_t count = std::min<int64_t>(8, cols - j);
    typename Vectors<Lanes>::Floats of_columns[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) of_columns[i] = sums[place_of<C>(std::min<int64_t>(j + i, cols - 1), apart)];
    Floats8 finished;
    sum_lanes(of_columns, finished);
    if (!first) {
      Floats8 before{};
      std::memcpy(&before, out + j, count * sizeof(float));
      finished += before;
    }
    std::memcpy(out + j, &finished, count * sizeof(float));
  }
}

template <int Lanes, int C>
MOLAE_INLINE void finish(const typename Vectors<Lanes>::Floats* sums, int64_t cols, bool first, float* out) {
  if (cols == kSumCols) {
    finish_row<Lanes, C>(sums, kSumCols, std::integral_constant<int64_t, kSumCols / C>{}, first, out);
  } else {
    finish_row<Lanes, C>(sums, cols, cols / C, first, out);
  }
}

}  // namespace molae::cpu
