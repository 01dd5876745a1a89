#pragma once

#include "cuda/logic/number.h"

namespace molae::cuda {

// The sums of a product that was cut into `splits` parts along its inner dimension: a plane of partial sums for each,
// which whoever needs the whole ones adds up, always in the same order. One split is an ordinary matrix.
template <class In>
struct SplitSums {
  Sum<In>* data;  // [splits][rows, stride]
  int64_t stride;
  int64_t plane;  // from one split to the next
  int32_t splits;

  MOLAE_HD Sum<In> at(int64_t row, int64_t col) const {
    const Sum<In>* part = data + row * stride + col;
    Sum<In> sum = *part;
    for (int32_t split = 1; split < splits; ++split) {
      part += plane;
      sum += *part;
    }
    return sum;
  }
};

}  // namespace molae::cuda
