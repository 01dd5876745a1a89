#pragma once

#include <cblas.h>

#include <cstdint>
#include <limits>

#include "core/error.h"

extern "C" {
void openblas_set_num_threads(int threads);
char* openblas_get_config(void);
}

namespace molae::blas {

inline int to_int(int64_t size) {
  if (size > std::numeric_limits<int>::max()) {
    fail(ErrorCode::InvalidArgument, "A side of ", size, " is too long for BLAS: 2^31 - 1 at most");
  }
  return static_cast<int>(size);
}

// C = alpha op(A) op(B) + beta C, row-major, on the calling thread.
inline void gemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, float alpha, const float* a, int64_t lda,
                 const float* b, int64_t ldb, float beta, float* c, int64_t ldc) {
  cblas_sgemm(CblasRowMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, to_int(m), to_int(n),
              to_int(k), alpha, a, to_int(lda), b, to_int(ldb), beta, c, to_int(ldc));
}

inline void gemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, double alpha, const double* a, int64_t lda,
                 const double* b, int64_t ldb, double beta, double* c, int64_t ldc) {
  cblas_dgemm(CblasRowMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, to_int(m), to_int(n),
              to_int(k), alpha, a, to_int(lda), b, to_int(ldb), beta, c, to_int(ldc));
}

// B becomes op(L)⁻¹ B: l [r, r] a lower triangle, B [r, cols] with rows of ldb elements, on the calling thread.
inline void divide_by_triangle(CBLAS_TRANSPOSE op, int64_t r, int64_t cols, const float* l, float* b, int64_t ldb) {
  cblas_strsm(CblasRowMajor, CblasLeft, CblasLower, op, CblasNonUnit, to_int(r), to_int(cols), 1, l, to_int(r), b,
              to_int(ldb));
}

inline void divide_by_triangle(CBLAS_TRANSPOSE op, int64_t r, int64_t cols, const double* l, double* b, int64_t ldb) {
  cblas_dtrsm(CblasRowMajor, CblasLeft, CblasLower, op, CblasNonUnit, to_int(r), to_int(cols), 1, l, to_int(r), b,
              to_int(ldb));
}

// Lets OpenBLAS itself use several threads for as long as this lives: for what runs alone and has no parallel form of
// ours. All other BLAS calls come from our own pool's threads and must not fork again.
class Threads {
 public:
  explicit Threads(int threads) { openblas_set_num_threads(threads); }
  ~Threads() { openblas_set_num_threads(1); }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;
};

}  // namespace molae::blas
