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

  // The same of kCount columns, where `col` is a multiple of kCount, and the stride and the plane are.
  template <int kCount>
  MOLAE_HD Pack<Sum<In>, kCount> pack_at(int64_t row, int64_t col) const {
    using Columns = Pack<Sum<In>, kCount>;
    const Sum<In>* part = data + row * stride + col;
    Columns sums = *reinterpret_cast<const Columns*>(part);
    for (int32_t split = 1; split < splits; ++split) {
      part += plane;
      const Columns more = *reinterpret_cast<const Columns*>(part);
      MOLAE_UNROLL
      for (int i = 0; i < kCount; ++i) sums.items[i] += more.items[i];
    }
    return sums;
  }
};

}  // namespace molae::cuda
