#pragma once

#include <utility>

#include "core/backend.h"
#include "core/factorization/group_tokens.h"

namespace molae {

// What gate and up make of the inputs of t tokens, f32 [t, m] each.
struct PreActivations {
  Tensor gate, up;
};

// What experts compute of the inputs of their layer, up to their hidden elements.
class ExpertActivations {
 public:
  // x [T, n] f32: the inputs of the layer.
  ExpertActivations(Backend& backend, CalibrationSteps& steps, Tensor x, Activation activation)
      : backend_(backend), steps_(steps), x_(std::move(x)), activation_(activation) {}

  const Tensor& layer_inputs() const { return x_; }
  // x [t, n] of some tokens, and the same times their weights.
  Tensor inputs(const RoutedTokens& tokens) const { return gathered(tokens.rows, Tensor()); }
  Tensor weighted_inputs(const RoutedTokens& tokens) const { return gathered(tokens.rows, tokens.weights); }

  // x W_gateᵀ and x W_upᵀ, weights [m, n].
  PreActivations times(const Tensor& x, const Tensor& gate, const Tensor& up) const;
  // (x Bᵀ) Aᵀ, basis f32 [r, n], a [m, r].
  Tensor through(const Tensor& x, const Tensor& basis, const Tensor& a) const;
  // act(gate) up [t, m], times the tokens' weights [t].
  Tensor hidden(const PreActivations& pre, const Tensor& weights) const;

 private:
  Tensor gathered(const Tensor& rows, const Tensor& weights) const;

  Backend& backend_;
  CalibrationSteps& steps_;
  Tensor x_;
  Activation activation_;
};

}  // namespace molae
