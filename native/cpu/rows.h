#pragma once

#include <cstdint>

namespace molae::cpu {

// Rows of a matrix, in order or picked by index.
template <class Real>
struct Rows {
  const Real* data;
  int64_t stride;
  const int32_t* index = nullptr;  // null: row i is row i

  const Real* row(int64_t i) const { return data + (index ? index[i] : i) * stride; }
};

}  // namespace molae::cpu
