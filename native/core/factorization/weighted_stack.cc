#include "core/factorization/weighted_stack.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/factorization/products.h"

namespace molae {
namespace {

// Eigenvalues of S C Sᵀ below this, relative to the largest, are rounding: their vectors give no direction of S.
constexpr double kNoise = 1e-11;

}  // namespace

WeightedStack::WeightedStack(Backend& backend, int64_t rows, int64_t n)
    : backend_(backend), steps_(*backend.calibration_steps()) {
  if (rows < n) {
    stack_ = zeros(backend_, DType::F32, {rows, n});
  } else {
    moment_ = zeros(backend_, DType::F64, {n, n});
  }
}

void WeightedStack::add(const Tensor& w, const Tensor& row_weights, double mass) {
  const std::vector<double> weights = downloaded(backend_, row_weights);
  std::vector<float> scales(weights.size());
  for (size_t j = 0; j < scales.size(); ++j) scales[j] = static_cast<float>(std::sqrt(mass * weights[j]));
  const Tensor wide = converted(backend_, w, DType::F32);
  const Tensor factors = uploaded(backend_, DType::F32, scales);
  if (!is_narrow()) return steps_.accumulate_moment(wide, factors, moment_);
  steps_.gather_rows(wide, counted(backend_, w.rows()), factors, stack_.row_range(used_, used_ + w.rows()));
  used_ += w.rows();
}

std::vector<double> WeightedStack::decompose(const Tensor& l, const Tensor& basis) {
  if (is_narrow() && basis.rows() <= stack_.rows()) {
    std::vector<double> values = decompose_rows(l, basis);
    if (!values.empty()) return values;
  }
  if (is_narrow()) {
    moment_ = zeros(backend_, DType::F64, {l.rows(), l.rows()});
    steps_.accumulate_moment(stack_, Tensor(), moment_);
  }
  return decompose_moment(l, basis);
}

// Eigenvectors U of S C Sᵀ give V = Lᵀ Sᵀ U Λ^-½, so that VᵀL⁻¹ = Λ^-½ Uᵀ S. Nothing where S has fewer directions than
// are asked for.
std::vector<double> WeightedStack::decompose_rows(const Tensor& l, const Tensor& basis) {
  const int64_t rows = stack_.rows(), r = basis.rows();
  const Tensor stack = converted(backend_, stack_, DType::F64);
  const Tensor whitened = product(backend_, stack, false, l, false);
  const Tensor moment = product(backend_, whitened, false, whitened, true);
  const Tensor values = empty(backend_, DType::F64, {rows});
  const Tensor vectors = empty(backend_, DType::F64, {r, rows});
  backend_.eigh(moment, values, vectors);
  std::vector<double> spectrum = downloaded(backend_, values);
  if (r > 0) {
    if (!(spectrum[r - 1] > kNoise * spectrum[0])) return {};
    std::vector<double> scaled = downloaded(backend_, vectors);
    for (size_t i = 0; i < scaled.size(); ++i) scaled[i] /= std::sqrt(spectrum[i / rows]);
    backend_.upload(scaled.data(), vectors);
    multiply(backend_, vectors, false, stack, false, basis);
  }
  spectrum.resize(l.rows(), 0);
  return spectrum;
}

std::vector<double> WeightedStack::decompose_moment(const Tensor& l, const Tensor& basis) {
  const Tensor moment = std::exchange(moment_, Tensor());
  steps_.congruence(l, moment);
  const Tensor values = empty(backend_, DType::F64, {l.rows()});
  backend_.eigh(moment, values, basis);
  steps_.divide_by_triangle(basis, l);
  return downloaded(backend_, values);
}

}  // namespace molae
