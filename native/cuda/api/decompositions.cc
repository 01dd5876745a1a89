#include <algorithm>
#include <limits>
#include <vector>

#include "core/error.h"
#include "cuda/api/check.h"
#include "cuda/api/linalg.h"
#include "cuda/kernels/launch.h"

namespace molae::cuda {
namespace {

// cuSOLVER's work space is in two places.
struct WorkSpace {
  WorkSpace(Gpu& gpu, size_t device_bytes, size_t host_bytes)
      : device(gpu.scratch(device_bytes, 1)),
        device_size(device_bytes),
        host(host_bytes),
        info(gpu.scratch(1, sizeof(int))) {}

  Scratch device;
  size_t device_size;
  std::vector<char> host;
  Scratch info;  // int
};

int read_info(Gpu& gpu, const Scratch& info, const char* routine) {
  const int value = gpu.read(info.as<int>());
  if (value < 0) fail(ErrorCode::Internal, routine, " refused its argument ", -value);
  return value;
}

void check_converged(Gpu& gpu, const Scratch& info, const char* routine) {
  const int value = read_info(gpu, info, routine);
  if (value != 0) fail(ErrorCode::NoConvergence, routine, " did not converge (info ", value, ")");
}

void check_finite(Gpu& gpu, const Tensor& a, const char* operation) {
  const int64_t bad = find_non_finite(gpu, a);
  if (bad >= 0) {
    fail(ErrorCode::NonFinite, operation, ": a has NaN or infinity at [", bad / a.cols(), ", ", bad % a.cols(), "]");
  }
}

// The SVD of M = U S V^T by columns, M m x n with m >= n (cuSOLVER has no other). Which routine:
//   n <= 64:    gesvdj, one-sided Jacobi: few launches and accurate also for small singular values
//   n <  1024:  Xgesvd, bidiagonal QR: the reference
//   else:       Xgesvdp, polar decomposition and eigenvalues, several times faster. It perturbs singular matrices and
//               says by how much: where that is more than rounding, Xgesvd does it again.
enum class SvdRoutine { Jacobi, Qr, Polar };

SvdRoutine choose_svd(int64_t n) {
  if (n <= 64) return SvdRoutine::Jacobi;
  return n < 1024 ? SvdRoutine::Qr : SvdRoutine::Polar;
}

struct TallSvd {
  DType dtype;
  int64_t m, n;
  void* matrix;  // m x n by columns, destroyed
  void* s;       // n
  void* u;       // m x n by columns
  void* v;       // n x n by columns: V; of Xgesvd V^T
};

void qr_svd(Gpu& gpu, const TallSvd& p) {
  const auto [handle, params] = gpu.cusolver();
  const Cusolver& solver = Cusolver::instance();
  const cudaDataType type = cuda_type(p.dtype);
  size_t device_bytes = 0, host_bytes = 0;
  check(solver.cusolverDnXgesvd_bufferSize(handle, params, 'S', 'S', p.m, p.n, type, p.matrix, p.m, type, p.s, type,
                                           p.u, p.m, type, p.v, p.n, type, &device_bytes, &host_bytes),
        "sizing an SVD");
  WorkSpace work(gpu, device_bytes, host_bytes);
  check(solver.cusolverDnXgesvd(handle, params, 'S', 'S', p.m, p.n, type, p.matrix, p.m, type, p.s, type, p.u, p.m,
                                type, p.v, p.n, type, work.device.as(), device_bytes, work.host.data(), host_bytes,
                                work.info.as<int>()),
        "an SVD (gesvd)");
  check_converged(gpu, work.info, "gesvd");
}

// False where the matrix was perturbed by more than rounding.
bool polar_svd(Gpu& gpu, const TallSvd& p) {
  const auto [handle, params] = gpu.cusolver();
  const Cusolver& solver = Cusolver::instance();
  const cudaDataType type = cuda_type(p.dtype);
  const auto mode = CUSOLVER_EIG_MODE_VECTOR;
  const int economic = 1;
  size_t device_bytes = 0, host_bytes = 0;
  check(solver.cusolverDnXgesvdp_bufferSize(handle, params, mode, economic, p.m, p.n, type, p.matrix, p.m, type, p.s,
                                            type, p.u, p.m, type, p.v, p.n, type, &device_bytes, &host_bytes),
        "sizing an SVD");
  WorkSpace work(gpu, device_bytes, host_bytes);
  double perturbation = 0;
  check(solver.cusolverDnXgesvdp(handle, params, mode, economic, p.m, p.n, type, p.matrix, p.m, type, p.s, type, p.u,
                                 p.m, type, p.v, p.n, type, work.device.as(), device_bytes, work.host.data(),
                                 host_bytes, work.info.as<int>(), &perturbation),
        "an SVD (gesvdp)");
  if (read_info(gpu, work.info, "gesvdp") != 0) return false;
  const double largest = p.dtype == DType::F32 ? static_cast<double>(gpu.read(static_cast<const float*>(p.s)))
                                               : gpu.read(static_cast<const double*>(p.s));
  const double rounding =
      p.dtype == DType::F32 ? std::numeric_limits<float>::epsilon() : std::numeric_limits<double>::epsilon();
  return perturbation <= rounding * largest;
}

template <class Real, class BufferSize, class Solve>
bool jacobi_svd_in(Gpu& gpu, const TallSvd& p, BufferSize buffer_size, Solve solve) {
  const Cusolver& solver = Cusolver::instance();
  const auto handle = gpu.cusolver().handle;
  struct Info {
    explicit Info(const Cusolver& library) : library(library) {
      check(library.cusolverDnCreateGesvdjInfo(&value), "an SVD (gesvdj)");
    }
    ~Info() { library.cusolverDnDestroyGesvdjInfo(value); }
    const Cusolver& library;
    gesvdjInfo_t value = nullptr;
  } jacobi(solver);
  const int m = static_cast<int>(p.m), n = static_cast<int>(p.n), economic = 1;
  const auto mode = CUSOLVER_EIG_MODE_VECTOR;
  Real *matrix = static_cast<Real*>(p.matrix), *s = static_cast<Real*>(p.s);
  Real *u = static_cast<Real*>(p.u), *v = static_cast<Real*>(p.v);
  int size = 0;
  check(buffer_size(handle, mode, economic, m, n, matrix, m, s, u, m, v, n, &size, jacobi.value), "sizing an SVD");
  WorkSpace work(gpu, static_cast<size_t>(size) * sizeof(Real), 0);
  check(solve(handle, mode, economic, m, n, matrix, m, s, u, m, v, n, work.device.as<Real>(), size, work.info.as<int>(),
              jacobi.value),
        "an SVD (gesvdj)");
  return read_info(gpu, work.info, "gesvdj") == 0;
}

// False where it does not converge, as it may not with matrices that are nearly singular.
bool jacobi_svd(Gpu& gpu, const TallSvd& p) {
  const Cusolver& solver = Cusolver::instance();
  return p.dtype == DType::F32
             ? jacobi_svd_in<float>(gpu, p, solver.cusolverDnSgesvdj_bufferSize, solver.cusolverDnSgesvdj)
             : jacobi_svd_in<double>(gpu, p, solver.cusolverDnDgesvdj_bufferSize, solver.cusolverDnDgesvdj);
}

// One decomposition of a [p, q]. Where q >= p, the rows of a are the columns of M = a^T (q x p), and a = V S U^T: U by
// columns is vt by rows, and u by rows is V by rows, that is V^T by columns. Where q < p, M = a itself, made by a
// transposition: U by columns is u transposed, V by columns is vt by rows.
class Svd {
 public:
  Svd(Gpu& gpu, const Tensor& a, const Tensor& u, const Tensor& s, const Tensor& vt)
      : gpu_(gpu), a_(a), u_(u), s_(s), vt_(vt), wide_(a.cols() >= a.rows()), item_(item_size(a.dtype())) {}

  void run() {
    const SvdRoutine routine = choose_svd(n());
    if (!attempt(routine)) attempt(SvdRoutine::Qr);
  }

 private:
  int64_t m() const { return std::max(a_.rows(), a_.cols()); }
  int64_t n() const { return std::min(a_.rows(), a_.cols()); }

  void transposed(const void* from, void* to, int64_t rows, int64_t cols) {
    check(kernels::transpose(gpu_.stream(), item_, from, to, rows, cols), "transposing");
  }

  bool attempt(SvdRoutine routine) {
    const Scratch matrix = gpu_.scratch(a_.elements(), item_);
    if (wide_) {
      check(cudaMemcpyAsync(matrix.as(), a_.data(), a_.bytes(), cudaMemcpyDeviceToDevice, gpu_.stream()), "copying");
    } else {
      transposed(a_.data(), matrix.as(), a_.rows(), a_.cols());
    }
    const bool right_fits = (routine == SvdRoutine::Qr) == wide_;
    const Scratch left = wide_ ? Scratch() : gpu_.scratch(u_.elements(), item_);
    const Scratch right = right_fits ? Scratch() : gpu_.scratch(static_cast<size_t>(n()) * n(), item_);
    void* right_to = wide_ ? u_.data() : vt_.data();
    const TallSvd problem{a_.dtype(),
                          m(),
                          n(),
                          matrix.as(),
                          s_.data(),
                          wide_ ? vt_.data() : left.as(),
                          right_fits ? right_to : right.as()};
    if (routine == SvdRoutine::Polar && !polar_svd(gpu_, problem)) return false;
    if (routine == SvdRoutine::Jacobi && !jacobi_svd(gpu_, problem)) return false;
    if (routine == SvdRoutine::Qr) qr_svd(gpu_, problem);
    if (!wide_) transposed(left.as(), u_.data(), n(), m());
    if (!right_fits) transposed(right.as(), right_to, n(), n());
    return true;
  }

  Gpu& gpu_;
  const Tensor &a_, &u_, &s_, &vt_;
  bool wide_;
  size_t item_;
};

// All eigenvalues ascending into `ascending`; with vectors, a's memory gets them as rows, in the same order.
void full_eigh(Gpu& gpu, const Tensor& a, void* ascending, bool with_vectors) {
  const auto [handle, params] = gpu.cusolver();
  const Cusolver& solver = Cusolver::instance();
  const cudaDataType type = cuda_type(a.dtype());
  const auto mode = with_vectors ? CUSOLVER_EIG_MODE_VECTOR : CUSOLVER_EIG_MODE_NOVECTOR;
  const auto triangle = CUBLAS_FILL_MODE_UPPER;  // our lower triangle by rows
  const int64_t n = a.rows();
  size_t device_bytes = 0, host_bytes = 0;
  check(solver.cusolverDnXsyevd_bufferSize(handle, params, mode, triangle, n, type, a.data(), n, type, ascending, type,
                                           &device_bytes, &host_bytes),
        "sizing an eigen-decomposition");
  WorkSpace work(gpu, device_bytes, host_bytes);
  check(solver.cusolverDnXsyevd(handle, params, mode, triangle, n, type, a.data(), n, type, ascending, type,
                                work.device.as(), device_bytes, work.host.data(), host_bytes, work.info.as<int>()),
        "an eigen-decomposition (syevd)");
  check_converged(gpu, work.info, "syevd");
}

// spd = R^T R by columns, R in the upper triangle (our lower one by rows).
void factor_spd(Gpu& gpu, const Tensor& spd) {
  const auto [handle, params] = gpu.cusolver();
  const Cusolver& solver = Cusolver::instance();
  const cudaDataType type = cuda_type(spd.dtype());
  const int64_t r = spd.rows();
  size_t device_bytes = 0, host_bytes = 0;
  check(solver.cusolverDnXpotrf_bufferSize(handle, params, CUBLAS_FILL_MODE_UPPER, r, type, spd.data(), r, type,
                                           &device_bytes, &host_bytes),
        "sizing a Cholesky factorization");
  WorkSpace work(gpu, device_bytes, host_bytes);
  check(solver.cusolverDnXpotrf(handle, params, CUBLAS_FILL_MODE_UPPER, r, type, spd.data(), r, type, work.device.as(),
                                device_bytes, work.host.data(), host_bytes, work.info.as<int>()),
        "a Cholesky factorization (potrf)");
  const int info = read_info(gpu, work.info, "potrf");
  if (info > 0) fail(ErrorCode::NoConvergence, "The matrix is not positive definite at pivot ", info);
}

// rhs by rows is X^T by columns: X^T spd = rhs^T, so X^T = rhs^T R^-1 R^-T, two triangular solves from the right.
template <class Real, class Trsm>
void solve_cholesky(Gpu& gpu, const Tensor& spd, const Tensor& rhs, Trsm trsm) {
  const int r = static_cast<int>(spd.rows());
  const int cols = static_cast<int>(rhs.cols());
  const Real one = 1;
  for (const cublasOperation_t op : {CUBLAS_OP_N, CUBLAS_OP_T}) {
    check(trsm(gpu.cublas(), CUBLAS_SIDE_RIGHT, CUBLAS_FILL_MODE_UPPER, op, CUBLAS_DIAG_NON_UNIT, cols, r, &one,
               spd.as<const Real>(), r, rhs.as<Real>(), cols),
          "a triangular solve");
  }
}

}  // namespace

void svd(Gpu& gpu, const Tensor& a, const Tensor& u, const Tensor& s, const Tensor& vt) {
  check_finite(gpu, a, "svd");
  if (a.rows() == 0 || a.cols() == 0) return;
  Svd(gpu, a, u, s, vt).run();
}

// All eigenvectors are computed, though only `top` are wanted: divide and conquer finds them together, and what a
// subset (Xsyevdx) saves is part of the last product. Its ascending order is turned around on the way out.
void eigh(Gpu& gpu, const Tensor& a, const Tensor& values, const Tensor& vectors) {
  check_finite(gpu, a, "eigh");
  const int64_t n = a.rows();
  if (n == 0) return;
  const Scratch ascending = gpu.scratch(static_cast<size_t>(n), item_size(a.dtype()));
  full_eigh(gpu, a, ascending.as(), vectors.rows() > 0);
  check(kernels::reverse_rows(gpu.stream(), a.dtype(), ascending.as(), values.data(), n, 1, n), "reversing");
  check(kernels::reverse_rows(gpu.stream(), a.dtype(), a.data(), vectors.data(), n, n, vectors.rows()), "reversing");
}

void solve_spd(Gpu& gpu, const Tensor& spd, const Tensor& rhs) {
  if (spd.rows() == 0 || rhs.cols() == 0) return;
  factor_spd(gpu, spd);
  const Cublas& library = Cublas::instance();
  if (spd.dtype() == DType::F32) {
    solve_cholesky<float>(gpu, spd, rhs, library.cublasStrsm_v2);
  } else {
    solve_cholesky<double>(gpu, spd, rhs, library.cublasDtrsm_v2);
  }
}

}  // namespace molae::cuda
