#include "core/factorization/products.h"

#include <numeric>
#include <utility>

namespace molae {
namespace {

// Whether sums of products of w's elements are as exact in f32 as those of numbers near 1. The largest element lies
// between the root of the mean square and the norm.
bool squares_fit_f32(const Tensor& w, double squared_norm) {
  constexpr double kLeastMeanSquare = 0x1p-80, kLargestSum = 0x1p100;
  const double mean = squared_norm / static_cast<double>(w.elements());
  return squared_norm == 0 || (mean >= kLeastMeanSquare && squared_norm <= kLargestSum);
}

}  // namespace

Tensor converted(Backend& backend, const Tensor& from, DType dtype) {
  if (from.dtype() == dtype) return from;
  Tensor to = empty(backend, dtype, from.shape());
  backend.copy(from, to);
  return to;
}

Tensor zeros(Backend& backend, DType dtype, Shape shape) {
  Tensor tensor = empty(backend, dtype, std::move(shape));
  backend.zero(tensor);
  return tensor;
}

Tensor transposed(Backend& backend, const Tensor& from) {
  Tensor to = empty(backend, from.dtype(), {from.cols(), from.rows()});
  backend.transpose(from, to);
  return to;
}

Tensor counted(Backend& backend, int64_t count) {
  std::vector<int32_t> numbers(count);
  std::iota(numbers.begin(), numbers.end(), 0);
  return uploaded(backend, DType::I32, numbers);
}

// c = alpha op(a) op(b) + beta c
void multiply(Backend& backend, const Tensor& a, bool transpose_a, const Tensor& b, bool transpose_b, const Tensor& c,
              double alpha, double beta) {
  const Gemm problem{a, b, c, transpose_a, transpose_b, alpha, beta};
  backend.gemm({&problem, 1});
}

Tensor product(Backend& backend, const Tensor& a, bool transpose_a, const Tensor& b, bool transpose_b) {
  Tensor c = empty(backend, a.dtype(), {transpose_a ? a.cols() : a.rows(), transpose_b ? b.rows() : b.cols()});
  multiply(backend, a, transpose_a, b, transpose_b, c);
  return c;
}

void accumulate_gram(Backend& backend, const Tensor& w, double squared_norm, SharedSide side, const Tensor& gram) {
  const bool in_range = !is_half(w.dtype()) || squares_fit_f32(w, squared_norm);
  backend.accumulate_gram(in_range ? w : converted(backend, w, DType::F32), side, gram);
}

std::vector<double> downloaded(Backend& backend, const Tensor& tensor) {
  std::vector<double> values(tensor.elements());
  backend.download(tensor, values.data());
  return values;
}

}  // namespace molae
