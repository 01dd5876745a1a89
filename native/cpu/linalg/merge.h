#pragma once

#include <cstdint>

#include "cpu/context.h"

// The step of divide and conquer: two blocks that are solved become one.
namespace molae::cpu {

// A diagonal block: its eigenvectors [size, size] are rows, in the order of the values at d[begin].
template <class Real>
struct Part {
  int64_t begin, size;
  Real* vectors;
};

// Of the block of two neighbours, n = first.size + second.size: all eigenvalues, descending, and the `top` leading
// eigenvectors [top, n], as rows. beside: the element between the two, which their diagonals were made smaller by. d
// has their eigenvalues, and is used up; values may be where they are.
template <class Real>
void merge(Context context, const Part<Real>& first, const Part<Real>& second, Real beside, Real* d, int64_t top,
           Real* values, Real* vectors);

}  // namespace molae::cpu
