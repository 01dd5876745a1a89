#include "core/factorization/expert_activations.h"

#include "core/factorization/products.h"

namespace molae {

Tensor ExpertActivations::gathered(const Tensor& rows, const Tensor& weights) const {
  Tensor x = empty(backend_, DType::F32, {rows.rows(), x_.cols()});
  steps_.gather_rows(x_, rows, weights, x);
  return x;
}

PreActivations ExpertActivations::times(const Tensor& x, const Tensor& gate, const Tensor& up) const {
  return {product(backend_, x, false, converted(backend_, gate, DType::F32), true),
          product(backend_, x, false, converted(backend_, up, DType::F32), true)};
}

Tensor ExpertActivations::through(const Tensor& x, const Tensor& basis, const Tensor& a) const {
  return product(backend_, product(backend_, x, false, basis, true), false, converted(backend_, a, DType::F32), true);
}

Tensor ExpertActivations::hidden(const PreActivations& pre, const Tensor& weights) const {
  Tensor result = empty(backend_, DType::F32, pre.gate.shape());
  const Tensor unused = zeros(backend_, DType::F64, {pre.gate.cols()});
  steps_.expert_hidden(pre.gate, pre.up, weights, activation_, result, unused, unused);
  return result;
}

}  // namespace molae
