#pragma once

#include <cstdint>

#include "core/error.h"
#include "cpu/linalg/blas.h"

// The LAPACK routines we use, by their Fortran symbols: OpenBLAS as Debian packages it has no LAPACKE.
extern "C" {
#define MOLAE_DECLARE_LAPACK(p, Real)                                                                                \
  void p##gesdd_(const char* jobz, const int* m, const int* n, Real* a, const int* lda, Real* s, Real* u,            \
                 const int* ldu, Real* vt, const int* ldvt, Real* work, const int* lwork, int* iwork, int* info);    \
  void p##sytrd_(const char* uplo, const int* n, Real* a, const int* lda, Real* d, Real* e, Real* tau, Real* work,   \
                 const int* lwork, int* info);                                                                       \
  void p##larfg_(const int* n, Real* alpha, Real* x, const int* incx, Real* tau);                                    \
  void p##sterf_(const int* n, Real* d, Real* e, int* info);                                                         \
  void p##stedc_(const char* compz, const int* n, Real* d, Real* e, Real* z, const int* ldz, Real* work,             \
                 const int* lwork, int* iwork, const int* liwork, int* info);                                        \
  void p##laed4_(const int* n, const int* i, const Real* d, const Real* z, Real* delta, const Real* rho, Real* dlam, \
                 int* info);                                                                                         \
  void p##potrf_(const char* uplo, const int* n, Real* a, const int* lda, int* info);
MOLAE_DECLARE_LAPACK(s, float)
MOLAE_DECLARE_LAPACK(d, double)
#undef MOLAE_DECLARE_LAPACK
}

// The same for float and double under one name, with the choices we make, and errors for what they report. LAPACK
// thinks in columns: its upper triangle is our lower one by rows.
namespace molae::lapack {

inline void check_info(int info, const char* routine) {
  if (info == 0) return;
  if (info < 0) fail(ErrorCode::Internal, routine, " refused its argument ", -info);
  fail(ErrorCode::NoConvergence, routine, " did not converge (info ", info, ")");
}

inline void check_positive_definite(int info) {
  if (info > 0) fail(ErrorCode::NoConvergence, "The matrix is not positive definite at pivot ", info);
  check_info(info, "potrf");
}

// gesdd   the thin SVD of the columns a [m, n], destroyed: u [m, min(m, n)], vt [min(m, n), n] with rows of min(m, n);
//         with a lwork of -1 only the work it wants, in work[0]
// sytrd   to tridiagonal form, the upper triangle
// larfg   a reflection that leaves alpha of [alpha, x], n elements together
// sterf   all eigenvalues of a tridiagonal matrix, ascending
// stedc   and its eigenvectors, columns of z [n, n]
// laed4   the i-th root, from 1, of the secular equation
// potrf   Cholesky: the lower triangle by rows of a positive definite matrix becomes L, A = L Lᵀ
#define MOLAE_LAPACK(p, Real)                                                                               \
  inline void gesdd(int m, int n, Real* a, Real* s, Real* u, Real* vt, Real* work, int lwork, int* iwork) { \
    const int k = m < n ? m : n;                                                                            \
    int info = 0;                                                                                           \
    p##gesdd_("S", &m, &n, a, &m, s, u, &m, vt, &k, work, &lwork, iwork, &info);                            \
    check_info(info, "gesdd");                                                                              \
  }                                                                                                         \
  inline void sytrd(int n, Real* a, int lda, Real* d, Real* e, Real* tau, Real* work, int lwork) {          \
    int info = 0;                                                                                           \
    p##sytrd_("U", &n, a, &lda, d, e, tau, work, &lwork, &info);                                            \
    check_info(info, "sytrd");                                                                              \
  }                                                                                                         \
  inline void larfg(int n, Real* alpha, Real* x, Real* tau) {                                               \
    const int stride = 1;                                                                                   \
    p##larfg_(&n, alpha, x, &stride, tau);                                                                  \
  }                                                                                                         \
  inline void sterf(int n, Real* d, Real* e) {                                                              \
    int info = 0;                                                                                           \
    p##sterf_(&n, d, e, &info);                                                                             \
    check_info(info, "sterf");                                                                              \
  }                                                                                                         \
  inline void stedc(int n, Real* d, Real* e, Real* z, Real* work, int lwork, int* iwork, int liwork) {      \
    int info = 0;                                                                                           \
    p##stedc_("I", &n, d, e, z, &n, work, &lwork, iwork, &liwork, &info);                                   \
    check_info(info, "stedc");                                                                              \
  }                                                                                                         \
  inline void laed4(int n, int i, const Real* d, const Real* z, Real* delta, Real rho, Real* root) {        \
    int info = 0;                                                                                           \
    p##laed4_(&n, &i, d, z, delta, &rho, root, &info);                                                      \
    check_info(info, "laed4");                                                                              \
  }                                                                                                         \
  inline void potrf(int n, Real* a) {                                                                       \
    int info = 0;                                                                                           \
    p##potrf_("U", &n, a, &n, &info);                                                                       \
    check_positive_definite(info);                                                                          \
  }
MOLAE_LAPACK(s, float)
MOLAE_LAPACK(d, double)
#undef MOLAE_LAPACK

}  // namespace molae::lapack
