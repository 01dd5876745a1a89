#include "cpu/factorization/calibration_steps.h"

#include <algorithm>
#include <numeric>

#include "core/error.h"
#include "cpu/linalg/blas.h"
#include "cpu/linalg/lapack.h"
#include "cpu/linalg/linalg.h"
#include "cpu/simd/convert.h"
#include "cpu/simd/exponential.h"
#include "cpu/simd/multiversion.h"
#include "cpu/system/compute_pool.h"

namespace molae::cpu {
namespace {

// Rows of a moment that are scaled into a workspace at a time.
constexpr int64_t kMomentRows = 4096;
// Rows of pre-activations that one task goes through.
constexpr int64_t kHiddenRows = 256;

// Rows or columns of a matrix that one task multiplies or solves for.
constexpr int64_t kBlock = 64;
// Rows that one task copies.
constexpr int64_t kCopiedRows = 64;

// Where a row of hidden elements goes, and what is summed of it.
struct HiddenRow {
  float* __restrict hidden;
  double* __restrict gate_slopes;
  double* __restrict up_slopes;
};

void plain_hidden(Activation activation, const float* gate, const float* up, float scale, int64_t m, HiddenRow to) {
  for (int64_t j = 0; j < m; ++j) {
    const float act = scale * activate(activation, gate[j]);
    const double by_gate = scale * activation_slope(activation, gate[j]) * up[j];
    to.hidden[j] = act * up[j];
    to.gate_slopes[j] += by_gate * by_gate;
    to.up_slopes[j] += static_cast<double>(act) * act;
  }
}

MOLAE_MULTIVERSION void silu_hidden(const float* gate, const float* up, float scale, int64_t m, HiddenRow to) {
  for (int64_t j = 0; j < m; ++j) {
    const float sigmoid = 1.0f / (1.0f + exp_flat(-gate[j]));
    const float act = scale * gate[j] * sigmoid;
    const double by_gate = scale * sigmoid * (1.0f + gate[j] * (1.0f - sigmoid)) * up[j];
    to.hidden[j] = act * up[j];
    to.gate_slopes[j] += by_gate * by_gate;
    to.up_slopes[j] += static_cast<double>(act) * act;
  }
}

// May be in place.
MOLAE_MULTIVERSION void scaled_row(const float* from, float scale, int64_t n, float* to) {
  for (int64_t j = 0; j < n; ++j) to[j] = scale * from[j];
}

// The sum of weights[j] (a[j] - b[j])^2; without b of a itself, without weights of the squares. Eight running sums: a
// compiler may keep them in one vector, and less rounding than in one.
template <bool kDifference, bool kWeighted>
MOLAE_INLINE double weighted_squares_in_lanes(const float* a, const float* b, const double* weights, int64_t m) {
  constexpr int64_t kLanes = 8;
  double sums[kLanes] = {};
  const auto add = [&](int64_t j, int64_t lane) {
    const double value = static_cast<double>(a[j]) - (kDifference ? b[j] : 0.0f);
    sums[lane] += (kWeighted ? weights[j] : 1.0) * value * value;
  };
  int64_t j = 0;
  for (; j + kLanes <= m; j += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) add(j + lane, lane);
  }
  for (; j < m; ++j) add(j, 0);
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

MOLAE_MULTIVERSION double weighted_squares(const float* a, const float* b, const double* weights, int64_t m) {
  if (b && weights) return weighted_squares_in_lanes<true, true>(a, b, weights, m);
  if (b) return weighted_squares_in_lanes<true, false>(a, b, weights, m);
  if (weights) return weighted_squares_in_lanes<false, true>(a, b, weights, m);
  return weighted_squares_in_lanes<false, false>(a, b, weights, m);
}

class CpuCalibrationSteps final : public CalibrationSteps {
 public:
  explicit CpuCalibrationSteps(Context context) : context_(context) {}

  void accumulate_moment(const Tensor& x, const Tensor& scales, const Tensor& moment) override {
    const int64_t n = x.cols();
    if (!scales && x.dtype() == DType::F32) {
      add_gram(context_, x.as<const float>(), n, x.rows(), SharedSide::Input, moment);
      return;
    }
    for (int64_t begin = 0; begin < x.rows(); begin += kMomentRows) {
      const int64_t rows = std::min(kMomentRows, x.rows() - begin);
      float* scaled = context_.workspace.get<float>(kOperandA, rows * n);
      over_rows(rows, [&](int64_t row) {
        float* to = scaled + row * n;
        const float scale = scales ? scales.as<const float>()[begin + row] : 1;
        if (x.dtype() == DType::F32) return scaled_row(x.as<const float>() + (begin + row) * n, scale, n, to);
        widen_elements(x.dtype(), x.as<const std::byte>() + (begin + row) * n * item_size(x.dtype()), to, n);
        if (scales) scaled_row(to, scale, n, to);
      });
      add_gram<float>(context_, scaled, n, rows, SharedSide::Input, moment);
    }
  }

  void gather_rows(const Tensor& x, const Tensor& rows, const Tensor& scales, const Tensor& out) override {
    const int64_t n = x.cols();
    over_rows(out.rows(), [&](int64_t row) {
      const float* from = x.as<const float>() + rows.as<const int32_t>()[row] * n;
      float* to = out.as<float>() + row * n;
      if (scales) return scaled_row(from, scales.as<const float>()[row], n, to);
      std::copy_n(from, n, to);
    });
  }

  void scatter_add_rows(const Tensor& from, const Tensor& rows, const Tensor& to) override {
    const int64_t n = from.cols();
    over_rows(from.rows(), [&](int64_t row) {
      const float* source = from.as<const float>() + row * n;
      float* target = to.as<float>() + rows.as<const int32_t>()[row] * n;
      for (int64_t j = 0; j < n; ++j) target[j] += source[j];
    });
  }

  void expert_hidden(const Tensor& gate, const Tensor& up, const Tensor& scales, Activation activation,
                     const Tensor& hidden, const Tensor& gate_slopes, const Tensor& up_slopes) override {
    const int64_t m = gate.cols(), rows = gate.rows();
    const int64_t tasks = ceil_divide(rows, kHiddenRows);
    double* sums = context_.workspace.get<double>(kOperandA, 2 * m * tasks);
    std::fill_n(sums, 2 * m * tasks, 0.0);
    ComputePool::instance().for_ranges(context_.threads, rows, kHiddenRows, [&](int64_t begin, int64_t end, int) {
      double* own = sums + 2 * m * (begin / kHiddenRows);
      for (int64_t row = begin; row < end; ++row) {
        const float* g = gate.as<const float>() + row * m;
        const float* u = up.as<const float>() + row * m;
        const float scale = scales.as<const float>()[row];
        const HiddenRow to{hidden.as<float>() + row * m, own, own + m};
        if (activation == Activation::Silu) {
          silu_hidden(g, u, scale, m, to);
        } else {
          plain_hidden(activation, g, u, scale, m, to);
        }
      }
    });
    // In the order of the tasks, so that the result does not depend on the number of threads.
    for (int64_t task = 0; task < tasks; ++task) {
      for (int64_t j = 0; j < m; ++j) {
        gate_slopes.as<double>()[j] += sums[2 * m * task + j];
        up_slopes.as<double>()[j] += sums[2 * m * task + m + j];
      }
    }
  }

  void column_norms(const Tensor& w, const Tensor& norms) override {
    const int64_t m = w.cols();
    double* row = context_.workspace.get<double>(kOperandA, m);
    std::fill_n(norms.as<double>(), m, 0.0);
    for (int64_t i = 0; i < w.rows(); ++i) {
      widen_elements(w.dtype(), w.as<const std::byte>() + i * m * item_size(w.dtype()), row, m);
      for (int64_t j = 0; j < m; ++j) norms.as<double>()[j] += row[j] * row[j];
    }
  }

  double weighted_distance(const Tensor& a, const Tensor& b, const Tensor& scales, const Tensor& weights) override {
    const int64_t m = a.cols();
    double sum = 0;
    for (int64_t row = 0; row < a.rows(); ++row) {
      const float* left = a.as<const float>() + row * m;
      const float* right = b ? b.as<const float>() + row * m : nullptr;
      const double scale = scales ? scales.as<const float>()[row] : 1;
      sum += scale * scale * weighted_squares(left, right, weights ? weights.as<const double>() : nullptr, m);
    }
    return sum;
  }

  double dot(const Tensor& a, const Tensor& b) override {
    const double *left = a.as<const double>(), *right = b.as<const double>();
    return std::inner_product(left, left + a.elements(), right, 0.0);
  }

  void add_scaled(const Tensor& x, double factor, const Tensor& y) override {
    const double* from = x.as<const double>();
    double* to = y.as<double>();
    const int64_t count = static_cast<int64_t>(y.elements());
    for (int64_t i = 0; i < count; ++i) to[i] += factor * from[i];
  }

  double trace(const Tensor& a) override {
    double sum = 0;
    for (int64_t i = 0; i < a.rows(); ++i) sum += a.as<const double>()[i * (a.rows() + 1)];
    return sum;
  }

  void add_to_diagonal(const Tensor& a, double value) override {
    for (int64_t i = 0; i < a.rows(); ++i) a.as<double>()[i * (a.rows() + 1)] += value;
  }

  void mirror_triangle(const Tensor& a) override {
    const int64_t n = a.rows();
    double* values = a.as<double>();
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < i; ++j) values[j * n + i] = values[i * n + j];
    }
  }

  void cholesky(const Tensor& a) override {
    const int n = blas::to_int(a.rows());
    if (n == 0) return;
    lapack::potrf(n, a.as<double>());
    for (int64_t i = 0; i < n; ++i) std::fill(a.as<double>() + i * n + i + 1, a.as<double>() + (i + 1) * n, 0.0);
  }

  // S L by rows, then Lᵀ (S L): a third more operations than LAPACK's sygst, all in products of blocks.
  void congruence(const Tensor& l, const Tensor& s) override {
    const int64_t n = s.rows();
    if (n == 0) return;
    mirror_triangle(s);
    double* product = context_.workspace.get<double>(kOperandB, n * n);
    over_blocks(n, [&](int64_t begin, int64_t count) {
      std::copy_n(s.as<double>() + begin * n, count * n, product + begin * n);
      cblas_dtrmm(CblasRowMajor, CblasRight, CblasLower, CblasNoTrans, CblasNonUnit, blas::to_int(count),
                  blas::to_int(n), 1, l.as<const double>(), blas::to_int(n), product + begin * n, blas::to_int(n));
    });
    over_blocks(n, [&](int64_t begin, int64_t count) {
      blas::gemm(true, false, count, begin + count, n - begin, 1.0, l.as<const double>() + begin * n + begin, n,
                 product + begin * n, n, 0.0, s.as<double>() + begin * n, n);
    });
  }

  void divide_by_triangle(const Tensor& x, const Tensor& l) override {
    const int64_t n = x.cols();
    over_blocks(n == 0 ? 0 : x.rows(), [&](int64_t begin, int64_t count) {
      cblas_dtrsm(CblasRowMajor, CblasRight, CblasLower, CblasNoTrans, CblasNonUnit, blas::to_int(count),
                  blas::to_int(n), 1, l.as<const double>(), blas::to_int(n), x.as<double>() + begin * n,
                  blas::to_int(n));
    });
  }

  void solve_triangle(const Tensor& l, const Tensor& x) override {
    const int64_t r = x.rows(), n = x.cols();
    over_blocks(r == 0 ? 0 : n, [&](int64_t begin, int64_t count) {
      blas::divide_by_triangle(CblasNoTrans, r, count, l.as<const double>(), x.as<double>() + begin, n);
    });
  }

 private:
  template <class Body>
  void over_rows(int64_t rows, Body&& body) {
    ComputePool::instance().for_ranges(context_.threads, rows, kCopiedRows, [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) body(row);
    });
  }

  template <class Body>
  void over_blocks(int64_t count, Body&& body) {
    ComputePool::instance().for_ranges(context_.threads, count, kBlock,
                                       [&](int64_t begin, int64_t end, int) { body(begin, end - begin); });
  }

  Context context_;
};

}  // namespace

std::unique_ptr<CalibrationSteps> make_calibration_steps(Context context) {
  return std::make_unique<CpuCalibrationSteps>(context);
}

}  // namespace molae::cpu
