#pragma once

#include <cstdint>

#include "cpu/context.h"

namespace molae::cpu {

// The second half of an eigendecomposition: eigenvalues and leading eigenvectors of a symmetric tridiagonal matrix, by
// divide and conquer (Cuppen 1981, made stable by Gu and Eisenstat 1995). LAPACK's stedc does small parts of the
// matrix; they are put together here rather than there, over our own threads, and at the end only for the vectors asked
// for: that last step is three quarters of all products. What is computed does not depend on the number of threads.
//   d, e    the diagonal [n] and what is beside it [n - 1], n >= 1; destroyed
//   values  [n] descending
//   vectors [top, n], the eigenvectors of the first `top` >= 1 values as rows
// At most 0.8 n² elements of workspace, and 128 n a thread.
template <class Real>
void tridiagonal_eigenvectors(Context context, int64_t n, int64_t top, Real* d, Real* e, Real* values, Real* vectors);

}  // namespace molae::cpu
