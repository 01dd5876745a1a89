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

}  // namespace molae
