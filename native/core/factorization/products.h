#pragma once

#include <vector>

#include "core/backend.h"

// Matrices made from matrices, for mathematics written out in many small products.
namespace molae {

Tensor converted(Backend& backend, const Tensor& from, DType dtype);  // the same tensor where it has the dtype already
Tensor zeros(Backend& backend, DType dtype, Shape shape);
Tensor transposed(Backend& backend, const Tensor& from);
Tensor counted(Backend& backend, int64_t count);  // i32: 0, 1, 2, …

// c = alpha op(a) op(b) + beta c
void multiply(Backend& backend, const Tensor& a, bool transpose_a, const Tensor& b, bool transpose_b, const Tensor& c,
              double alpha = 1, double beta = 0);
Tensor product(Backend& backend, const Tensor& a, bool transpose_a, const Tensor& b, bool transpose_b);

// Backend::accumulate_gram() for matrices of any magnitude. It sums products of halves in f32, whose range squares of
// bf16 leave: then w is widened first, and all sums are f64. squared_norm is w's.
void accumulate_gram(Backend& backend, const Tensor& w, double squared_norm, SharedSide side, const Tensor& gram);

template <class T>
Tensor uploaded(Backend& backend, DType dtype, const std::vector<T>& values) {
  Tensor tensor = empty(backend, dtype, {static_cast<int64_t>(values.size())});
  backend.upload(values.data(), tensor);
  return tensor;
}

std::vector<double> downloaded(Backend& backend, const Tensor& tensor);  // of f64

}  // namespace molae
