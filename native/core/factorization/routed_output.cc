#include "core/factorization/routed_output.h"

#include <algorithm>
#include <utility>

#include "core/factorization/products.h"

namespace molae {
namespace {

// Added to the diagonal of WᵀW, relative to its mean, so that it has a triangle R.
constexpr double kRidge = 1e-11;
// Squared norms of basis vectors may fall short of 1 by this much altogether; where more is missing, W has not as many
// directions as were asked for.
constexpr double kMissing = 1e-3;

}  // namespace

RoutedOutput::RoutedOutput(Backend& backend, int64_t tokens, int64_t n, int64_t m, size_t experts)
    : backend_(backend), steps_(*backend.calibration_steps()) {
  if (experts == 1 && m < n) {
    hidden_moment_ = zeros(backend_, DType::F64, {m, m});
  } else {
    sums_ = zeros(backend_, DType::F32, {tokens, n});
    moment_ = zeros(backend_, DType::F64, {n, n});
  }
}

void RoutedOutput::begin_expert(const Tensor& down) {
  down_ = converted(backend_, down, hidden_moment_ ? DType::F64 : DType::F32);
}

void RoutedOutput::add(const Tensor& rows, const Tensor& hidden) {
  if (hidden_moment_) return steps_.accumulate_moment(hidden, Tensor(), hidden_moment_);
  steps_.scatter_add_rows(product(backend_, hidden, false, down_, true), rows, sums_);
}

void RoutedOutput::add_white(const Tensor& down) {
  if (hidden_moment_) {
    steps_.add_to_diagonal(hidden_moment_, 1);
    down_ = converted(backend_, down, DType::F64);
    return;
  }
  accumulate_gram(backend_, down, backend_.squared_norm(down), SharedSide::Output, moment_);
}

std::vector<double> RoutedOutput::decompose(const Tensor& vectors) {
  if (!hidden_moment_) {
    steps_.accumulate_moment(sums_, Tensor(), moment_);
    sums_ = down_ = Tensor();
    return decompose_moment(vectors);
  }
  steps_.mirror_triangle(hidden_moment_);
  if (vectors.rows() <= hidden_moment_.rows()) {
    std::vector<double> values = decompose_alone(vectors);
    if (!values.empty()) return values;
  }
  moment_ = product(backend_, product(backend_, down_, false, hidden_moment_, false), false, down_, true);
  return decompose_moment(vectors);
}

// Nothing where W has fewer directions than are asked for.
std::vector<double> RoutedOutput::decompose_alone(const Tensor& vectors) {
  const int64_t m = down_.cols(), r = vectors.rows();
  const Tensor triangle = product(backend_, down_, true, down_, false);
  const double trace = steps_.trace(triangle);
  steps_.add_to_diagonal(triangle, trace > 0 ? kRidge * trace / static_cast<double>(m) : 1);
  steps_.cholesky(triangle);
  const Tensor inner = empty(backend_, DType::F64, {m, m});
  backend_.copy(hidden_moment_, inner);
  steps_.congruence(triangle, inner);
  const Tensor values = empty(backend_, DType::F64, {m});
  const Tensor coordinates = empty(backend_, DType::F64, {r, m});
  backend_.eigh(inner, values, coordinates);
  if (r > 0) {
    steps_.divide_by_triangle(coordinates, triangle);
    multiply(backend_, coordinates, false, down_, true, vectors);
    if (!(steps_.dot(vectors, vectors) > static_cast<double>(r) - kMissing)) return {};
  }
  std::vector<double> spectrum = downloaded(backend_, values);
  spectrum.resize(down_.rows(), 0);
  return spectrum;
}

std::vector<double> RoutedOutput::decompose_moment(const Tensor& vectors) {
  const Tensor moment = std::exchange(moment_, Tensor());
  const Tensor values = empty(backend_, DType::F64, {moment.rows()});
  backend_.eigh(moment, values, vectors);
  return downloaded(backend_, values);
}

}  // namespace molae
