#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "cpu/linear/rows.h"
#include "cpu/simd/vectors.h"
#include "cpu/system/processor.h"

// How the rows of streamed weights are cut into passes and their inner size into pieces, and how inputs lie for that.
namespace molae::cpu {

// Rows that one pass over weights multiplies at most.
constexpr int kMostPassRows = 13;

// With so many columns: as many as have their running sums in registers, beside a weight of each column and an input.
constexpr int rows_of_pass(int cols, int lanes) {
  const int registers = lanes == 16 ? 32 : 16;
  return std::clamp((registers - 1 - cols) / cols, 1, kMostPassRows);
}

// Rows are multiplied in passes of about the same number; the last has the most.
struct Pass {
  int64_t row, rows;
};

// One where registers allow it, as weights then go through the caches once: on a Xeon that took 6 to 24% less time for
// 9 to 13 rows. But with AVX2 two of four rows and three columns are faster than one of eight rows and one column.
MOLAE_INLINE int64_t passes_of(int64_t rows, int lanes) {
  if (rows > kMostPassRows || (lanes == 8 && (rows == 7 || rows == 8))) {
    const int most = rows_of_pass(3, lanes);
    return (rows + most - 1) / most;
  }
  return 1;
}

MOLAE_INLINE Pass pass_at(int64_t index, int64_t passes, int64_t rows) {
  const int64_t row = rows * index / passes;
  return {row, rows * (index + 1) / passes - row};
}

// Two vectors of a row, the even elements before the odd ones.
template <int Lanes>
MOLAE_INLINE void split(const float* from, float* to) {
#if defined(__clang__)
  for (int lane = 0; lane < Lanes; ++lane) {
    to[lane] = from[2 * lane];
    to[Lanes + lane] = from[2 * lane + 1];
  }
#else  // which would not vectorize that
  using Floats = typename Vectors<Lanes>::Floats;
  using Masks = typename Vectors<Lanes>::Masks;
  Masks even;
  for (int lane = 0; lane < Lanes; ++lane) even[lane] = 2 * lane;
  Floats first, second;
  load(first, from);
  load(second, from + Lanes);
  store(to, __builtin_shuffle(first, second, even));
  store(to + Lanes, __builtin_shuffle(first, second, even + 1));
#endif
}

// A piece of the inputs of all rows, pass by pass, pair of vectors by pair, row by row: a pass reads it from beginning
// to end, and rows a power of two apart do not meet in the sets of the first cache.
template <int Lanes, bool Split>
MOLAE_INLINE void arrange(const Rows<float>& x, int64_t rows, int64_t begin, int64_t piece, float* to) {
  constexpr int kPair = 2 * Lanes;
  const int64_t passes = passes_of(rows, Lanes);
  for (int64_t index = 0; index < passes; ++index) {
    const Pass pass = pass_at(index, passes, rows);
    for (int64_t i = 0; i < pass.rows; ++i) {
      const float* from = x.row(pass.row + i) + begin;
      float* pair = to + pass.row * piece + i * kPair;
      for (int64_t k = 0; k < piece; k += kPair, pair += pass.rows * kPair) {
        if constexpr (Split) {
          split<Lanes>(from + k, pair);
        } else {
          std::memcpy(pair, from + k, kPair * sizeof(float));
        }
      }
    }
  }
}

// How the inner size is cut. The rest is less than a pair of vectors.
struct Pieces {
  int64_t whole;   // without the rest
  int64_t length;  // but for the last
};

// Pieces of which the inputs of all rows stay in the first cache, beside weights and sums.
template <int Lanes>
MOLAE_INLINE Pieces cut_inner(int64_t rows, int64_t inner) {
  constexpr int64_t kUnit = 64;  // whole pairs of vectors, and lines
  const int64_t most = caches().first_bytes / 16 * 13 / static_cast<int64_t>(sizeof(float));
  const int64_t whole = inner / (2 * Lanes) * (2 * Lanes);
  const int64_t pieces = std::max<int64_t>(1, (rows * whole + most - 1) / most);
  const int64_t length = ((whole + pieces - 1) / pieces + kUnit - 1) / kUnit * kUnit;
  return {whole, std::max(kUnit, length)};
}

}  // namespace molae::cpu
