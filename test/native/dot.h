#pragma once

#include <cstdint>

namespace molae::test {

// The sum of n products in f64: what references spend their time in. In every build optimized, and without a
// sanitizer's checks (CMakeLists.txt): whoever calls it vouches for both ranges.
double dot(const double* a, const double* b, int64_t n);

}  // namespace molae::test
