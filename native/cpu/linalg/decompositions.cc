#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "core/error.h"
#include "cpu/linalg/blas.h"
#include "cpu/linalg/divide_and_conquer.h"
#include "cpu/linalg/lapack.h"
#include "cpu/linalg/linalg.h"
#include "cpu/linalg/tridiagonal.h"
#include "cpu/simd/convert.h"
#include "cpu/system/compute_pool.h"

namespace molae::cpu {
namespace {

// Columns of a right-hand side that one task solves for: every task packs the triangle anew.
constexpr int64_t kLeastSolvedColumns = 128, kMostSolvedColumns = 6400;

void check_finite(const Tensor& a, const char* operation) {
  const int64_t bad = first_non_finite(a.dtype(), a.data(), a.elements());
  if (bad >= 0) {
    fail(ErrorCode::NonFinite, operation, ": a has NaN or infinity at [", bad / a.cols(), ", ", bad % a.cols(), "]");
  }
}

// LAPACK thinks in columns: the rows of our a [p, q] are the columns of M = a^T [q, p], and M = U S V^T means
// a = V S U^T. So LAPACK's U, q x k by columns, is our vt by rows, and its V^T our u.
template <class Real>
void svd_in(Context context, const Tensor& a, const Tensor& u, const Tensor& s, const Tensor& vt) {
  const int rows = blas::to_int(a.cols());
  const int cols = blas::to_int(a.rows());
  const int k = std::min(rows, cols);
  if (k == 0) return;
  Real* copy = context.workspace.get<Real>(kOperandA, a.elements());
  std::memcpy(copy, a.data(), a.bytes());
  int* iwork = context.workspace.get<int>(kIntegers, 8 * static_cast<size_t>(k));
  const auto call = [&](Real* work, int lwork) {
    lapack::gesdd(rows, cols, copy, s.as<Real>(), vt.as<Real>(), u.as<Real>(), work, lwork, iwork);
  };
  Real optimal = 0;
  call(&optimal, -1);
  // A float may round the size down: ask for a little more.
  const int lwork = blas::to_int(static_cast<int64_t>(static_cast<double>(optimal) * 1.0001) + 64);
  call(context.workspace.get<Real>(kWork, lwork), lwork);
}

// The power of two that elements of a triangle are to be made smaller by, 0 for nearly all matrices: where eigenvalues
// may not fit the dtype, sums on the way to all of them would overflow. LAPACK's drivers scale such matrices, too.
template <class Real>
int excess_of(int64_t n, const Real* a) {
  Real largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j <= i; ++j) largest = std::max(largest, std::abs(a[i * n + j]));
  }
  if (largest < std::numeric_limits<Real>::max() / static_cast<Real>(16 * n)) return 0;
  int power = 0;
  std::frexp(largest, &power);
  return power;
}

template <class Real>
void scale_triangle(int64_t n, int power, Real* a) {
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j <= i; ++j) a[i * n + j] = std::ldexp(a[i * n + j], power);
  }
}

// Householder to tridiagonal form once; from it all eigenvalues, by QR iteration where no vectors are asked for; the
// leading eigenvectors by divide and conquer, transformed back. By bisection and inverse iteration (what syevr does for
// a subset) the flat spectra of expert weights cost n top^2 to orthogonalize, and the MRRR algorithm's O(n) a vector
// are divisions one after another.
template <class Real>
void eigh_in(Context context, const Tensor& a, Real* values, Real* vectors, int n, int top) {
  if (n == 0) return;
  const size_t size = static_cast<size_t>(n);
  Real* d = context.workspace.get<Real>(kVectorA, size);
  Real* e = context.workspace.get<Real>(kVectorB, size);
  Real* tau = context.workspace.get<Real>(kVectorC, size);
  const int excess = excess_of(n, a.as<const Real>());
  if (excess != 0) scale_triangle(n, -excess, a.as<Real>());
  tridiagonalize(context, n, a.as<Real>(), d, e, tau);
  if (top > 0) {
    tridiagonal_eigenvectors(context, n, top, d, e, values, vectors);
    multiply_by_reflections(context, n, a.as<Real>(), tau, top, vectors);
  } else {
    lapack::sterf(n, d, e);
    std::reverse_copy(d, d + n, values);
  }
  if (excess == 0) return;
  for (int i = 0; i < n; ++i) values[i] = std::ldexp(values[i], excess);
}

template <class Real>
void eigh_of(Context context, const Tensor& a, const Tensor& values, const Tensor& vectors) {
  eigh_in(context, a, values.as<Real>(), vectors.as<Real>(), blas::to_int(a.rows()), blas::to_int(vectors.rows()));
}

template <class Real>
void solve_spd_in(Context context, const Tensor& spd, const Tensor& rhs) {
  const int r = blas::to_int(spd.rows());
  const int64_t cols = rhs.cols();
  if (r == 0 || cols == 0) return;  // BLAS refuses leading dimensions of 0
  lapack::potrf(r, spd.as<Real>());
  const int64_t most = std::clamp((cols + 7) / 8, kLeastSolvedColumns, kMostSolvedColumns);
  ComputePool::instance().for_ranges(context.threads, cols, most, [&](int64_t begin, int64_t end, int) {
    for (const CBLAS_TRANSPOSE side : {CblasNoTrans, CblasTrans}) {
      blas::divide_by_triangle(side, r, end - begin, spd.as<const Real>(), rhs.as<Real>() + begin, cols);
    }
  });
}

}  // namespace

void svd(Context context, const Tensor& a, const Tensor& u, const Tensor& s, const Tensor& vt) {
  check_finite(a, "svd");
  const blas::Threads threads(context.threads);
  if (a.dtype() == DType::F32) {
    svd_in<float>(context, a, u, s, vt);
  } else {
    svd_in<double>(context, a, u, s, vt);
  }
}

void eigh(Context context, const Tensor& a, const Tensor& values, const Tensor& vectors) {
  check_finite(a, "eigh");
  if (a.dtype() == DType::F32) {
    eigh_of<float>(context, a, values, vectors);
  } else {
    eigh_of<double>(context, a, values, vectors);
  }
}

void solve_spd(Context context, const Tensor& spd, const Tensor& rhs) {
  if (spd.dtype() == DType::F32) {
    solve_spd_in<float>(context, spd, rhs);
  } else {
    solve_spd_in<double>(context, spd, rhs);
  }
}

}  // namespace molae::cpu
