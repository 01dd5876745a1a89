#pragma once

#include <cstddef>
#include <cstdint>

#include "core/error.h"

namespace molae {

// a * b and a + b for sizes; throws InvalidArgument where 64 bits do not hold the result.
inline size_t checked_mul(size_t a, size_t b) {
  size_t product;
  if (__builtin_mul_overflow(a, b, &product)) fail(ErrorCode::InvalidArgument, "Size overflow: ", a, " * ", b);
  return product;
}

inline size_t checked_add(size_t a, size_t b) {
  size_t sum;
  if (__builtin_add_overflow(a, b, &sum)) fail(ErrorCode::InvalidArgument, "Size overflow: ", a, " + ", b);
  return sum;
}

// How many parts of `size` hold `count`, and the least multiple of `unit` that holds `count`. For sizes of what there
// is: nothing here overflows for them.
constexpr int64_t ceil_divide(int64_t count, int64_t size) { return (count + size - 1) / size; }
constexpr int64_t round_up(int64_t count, int64_t unit) { return ceil_divide(count, unit) * unit; }

}  // namespace molae
