#pragma once

#include <cstdint>

#include "cpu/context.h"

namespace molae::cpu {

// The first half of an eigendecomposition: A = Q T Qᵀ, T tridiagonal, by Householder's reflections (Dongarra,
// Hammarling, Sorensen 1989: reflections of a panel are applied to the rest of A together, as a matrix product).
// LAPACK's sytrd with uplo "U" in all it gives, but over our own threads: OpenBLAS's wait for each other several times
// a column, which beside any other load on the machine costs more than they gain.
//   a    [n, n], of which the lower triangle by rows is read; gets the reflections
//   d, e the diagonal [n] and what is beside it [n - 1] of T
//   tau  [n - 1] the reflections' factors
template <class Real>
void tridiagonalize(Context context, int64_t n, Real* a, Real* d, Real* e, Real* tau);

// vectors[i] becomes Q vectors[i]; [count, n], a and tau from tridiagonalize().
template <class Real>
void multiply_by_reflections(Context context, int64_t n, Real* a, const Real* tau, int64_t count, Real* vectors);

}  // namespace molae::cpu
