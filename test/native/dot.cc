#include "native/dot.h"

namespace molae::test {

double dot(const double* a, const double* b, int64_t n) {
  // As many sums as keep two vectors of them busy, for compilers may not reorder one.
  constexpr int64_t kSums = 16;
  double sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums <= n; i += kSums) {
    for (int64_t j = 0; j < kSums; ++j) sums[j] += a[i + j] * b[i + j];
  }
  double sum = 0;
  for (; i < n; ++i) sum += a[i] * b[i];
  for (const double part : sums) sum += part;
  return sum;
}

}  // namespace molae::test
