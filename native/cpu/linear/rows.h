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

  // Without what is before a row and a column.
  Rows from(int64_t row, int64_t col) const {
    return {data + (index ? 0 : row * stride) + col, stride, index ? index + row : nullptr};
  }
};

}  // namespace molae::cpu
