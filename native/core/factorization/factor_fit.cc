#include "core/factorization/factor_fit.h"

#include <algorithm>

#include "core/factorization/products.h"

namespace molae {
namespace {

// Added to the diagonal of a normal matrix, relative to its mean.
constexpr double kRidge = 1e-7;

// C~_i Bᵀ [n, r]
Tensor cross_moment(Backend& backend, const ExpertActivations& activations, const InputMoment& moment,
                    const InputBasis& basis) {
  if (moment.shrinkage == 1) return basis.shared_cross;
  Tensor cross = empty(backend, DType::F32, basis.shared_cross.shape());
  backend.copy(basis.shared_cross, cross);
  const double own = (1 - moment.shrinkage) / moment.mass;
  if (moment.moment) {
    multiply(backend, moment.moment, false, basis.rows, true, cross, own, moment.shrinkage);
  } else {
    const Tensor x = activations.weighted_inputs(moment.tokens);
    multiply(backend, x, true, product(backend, x, false, basis.rows, true), false, cross, own, moment.shrinkage);
  }
  return cross;
}

}  // namespace

void fit_input_factor(Backend& backend, const ExpertActivations& activations, const InputMoment& moment,
                      const InputBasis& basis, const Tensor& w, const Tensor& a) {
  CalibrationSteps& steps = *backend.calibration_steps();
  const Tensor cross = cross_moment(backend, activations, moment, basis);
  const Tensor normal = converted(backend, product(backend, basis.rows, false, cross, false), DType::F64);
  steps.add_to_diagonal(normal, kRidge * steps.trace(normal) / static_cast<double>(normal.rows()));
  const Tensor wide = converted(backend, w, DType::F32);
  const Tensor solution = converted(backend, product(backend, cross, true, wide, true), DType::F64);
  backend.solve_spd(normal, solution);
  backend.copy(transposed(backend, solution), a);
}

void fit_output_factor(Backend& backend, const Tensor& projected, const HiddenPair& hidden, double shrinkage,
                       const Tensor& a) {
  CalibrationSteps& steps = *backend.calibration_steps();
  const Tensor normal =
      converted(backend, product(backend, hidden.converted, true, hidden.converted, false), DType::F64);
  const Tensor cross = converted(backend, product(backend, hidden.original, true, hidden.converted, false), DType::F64);
  const double normal_trace = steps.trace(normal);
  const double ridge =
      shrinkage * normal_trace / (static_cast<double>(normal.rows()) * static_cast<double>(hidden.original.rows()));
  const double least = kRidge * normal_trace / static_cast<double>(normal.rows());
  // Hidden values that are all 0 say nothing: the solution is then `projected` itself, as without tokens.
  const double weight = normal_trace > 0 ? std::max(ridge, least) : 1;
  steps.add_to_diagonal(normal, weight);
  steps.add_to_diagonal(cross, weight);
  const Tensor solution = product(backend, cross, true, converted(backend, projected, DType::F64), true);  // [m, r]
  backend.solve_spd(normal, solution);
  backend.copy(transposed(backend, solution), a);
}

}  // namespace molae
