#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "core/error.h"
#include "cpu/blas.h"
#include "cpu/compute_pool.h"
#include "cpu/convert.h"
#include "cpu/linalg.h"
#include "cpu/tridiagonal.h"

namespace molae::cpu {
namespace {

// LAPACK's routines for float and double under one name.
template <class Real>
struct Lapack;

#define MOLAE_LAPACK(Real, p)                \
  template <>                                \
  struct Lapack<Real> {                      \
    static constexpr auto gesdd = p##gesdd_; \
    static constexpr auto sterf = p##sterf_; \
    static constexpr auto stemr = p##stemr_; \
    static constexpr auto potrf = p##potrf_; \
  };
MOLAE_LAPACK(float, s)
MOLAE_LAPACK(double, d)
#undef MOLAE_LAPACK

// Columns of a right-hand side that one task solves for.
constexpr int64_t kSolvedColumns = 6400;

void check_info(int info, const char* routine) {
  if (info == 0) return;
  if (info < 0) fail(ErrorCode::Internal, routine, " refused its argument ", -info);
  fail(ErrorCode::NoConvergence, routine, " did not converge (info ", info, ")");
}

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
  int info = 0;
  const int query = -1;
  Real optimal = 0;
  const auto call = [&](Real* work, const int* lwork) {
    Lapack<Real>::gesdd("S", &rows, &cols, copy, &rows, s.as<Real>(), vt.as<Real>(), &rows, u.as<Real>(), &k, work,
                        lwork, iwork, &info);
    check_info(info, "gesdd");
  };
  call(&optimal, &query);
  // A float may round the size down: ask for a little more.
  const int lwork = blas::to_int(static_cast<int64_t>(static_cast<double>(optimal) * 1.0001) + 64);
  call(context.workspace.get<Real>(kWork, lwork), &lwork);
}

// Householder to tridiagonal form once; all eigenvalues from it by QR iteration; the leading eigenvectors by the MRRR
// algorithm, O(n) each, and transformed back. A subset by bisection and inverse iteration (what syevr does)
// would orthogonalize n top^2 in the flat spectra of expert weights.
template <class Real>
void eigh_in(Context context, const Tensor& a, Real* values, Real* vectors, int n, int top) {
  const size_t size = static_cast<size_t>(n);
  Real* d = context.workspace.get<Real>(kVectorA, 2 * size);
  Real* e = context.workspace.get<Real>(kVectorB, 2 * size);
  Real* tau = context.workspace.get<Real>(kVectorC, 2 * size);
  Real* w = tau + size;
  tridiagonalize(context, n, a.as<Real>(), d, e, tau);

  // Copies for the eigenvectors: both steps destroy the tridiagonal matrix.
  std::copy(d, d + n, d + n);
  std::copy(e, e + n - 1, e + n);
  int info = 0;
  Lapack<Real>::sterf(&n, d, e, &info);
  check_info(info, "sterf");
  std::reverse_copy(d, d + n, values);
  if (top == 0) return;

  const int first = n - top + 1;
  const Real unused = 0;
  int found = 0;
  int precise = 1;
  const int liwork = blas::to_int(10 * static_cast<int64_t>(n));
  const int lwork = blas::to_int(18 * static_cast<int64_t>(n));
  Real* work = context.workspace.get<Real>(kWork, lwork);
  int* isuppz = context.workspace.get<int>(kIntegers, 2 * static_cast<size_t>(top) + liwork);
  Lapack<Real>::stemr("V", "I", &n, d + n, e + n, &unused, &unused, &first, &n, &found, w, vectors, &n, &top, isuppz,
                      &precise, work, &lwork, isuppz + 2 * static_cast<size_t>(top), &liwork, &info);
  check_info(info, "stemr");
  if (found != top) fail(ErrorCode::NoConvergence, "stemr found ", found, " of ", top, " eigenvectors");
  multiply_by_reflections(context, n, a.as<Real>(), tau, top, vectors);
  for (int i = 0; i < top / 2; ++i) {  // ascending to descending
    std::swap_ranges(vectors + i * size, vectors + (i + 1) * size, vectors + (top - 1 - i) * size);
  }
}

template <class Real>
void eigh_any_size(Context context, const Tensor& a, const Tensor& values, const Tensor& vectors) {
  const int n = blas::to_int(a.rows());
  const int top = blas::to_int(vectors.rows());
  if (n == 0) return;
  if (n == 2 && top == 1) {
    // LAPACK 3.9's stemr takes the eigenvalue of larger magnitude for the larger one in its shortcut for n = 2, and
    // gives the wrong vector when one of two is asked for.
    Real both[4];
    eigh_in(context, a, values.as<Real>(), both, n, 2);
    std::copy(both, both + 2, vectors.as<Real>());
    return;
  }
  eigh_in(context, a, values.as<Real>(), vectors.as<Real>(), n, top);
}

template <class Real>
void solve_spd_in(Context context, const Tensor& spd, const Tensor& rhs) {
  const int r = blas::to_int(spd.rows());
  const int64_t cols = rhs.cols();
  if (r == 0 || cols == 0) return;  // BLAS refuses leading dimensions of 0
  int info = 0;
  Lapack<Real>::potrf("U", &r, spd.as<Real>(), &r, &info);  // our lower triangle by rows
  if (info > 0) fail(ErrorCode::NoConvergence, "The matrix is not positive definite at pivot ", info);
  check_info(info, "potrf");
  const int64_t tasks = (cols + kSolvedColumns - 1) / kSolvedColumns;
  ComputePool::instance().parallel_for(context.threads, tasks, [&](int64_t task, int) {
    const int64_t begin = task * kSolvedColumns, count = std::min(kSolvedColumns, cols - begin);
    for (const CBLAS_TRANSPOSE side : {CblasNoTrans, CblasTrans}) {
      blas::divide_by_triangle(side, r, count, spd.as<const Real>(), rhs.as<Real>() + begin, cols);
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
    eigh_any_size<float>(context, a, values, vectors);
  } else {
    eigh_any_size<double>(context, a, values, vectors);
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
