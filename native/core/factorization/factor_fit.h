#pragma once

#include <cstdint>

#include "core/backend.h"
#include "core/factorization/expert_activations.h"

// Least squares: an expert's factors for a basis that is given, fitted to what the expert meets.
namespace molae {

// The basis of gate or up as stored, and what fitting needs of it.
struct InputBasis {
  Tensor rows;          // f32 [r, n]
  Tensor shared_cross;  // f32 [n, r]: C Bᵀ / tr C
};

// C~_i = (1 - shrinkage) C_i / tr C_i + shrinkage C / tr C: the moment of an expert's inputs, shrunk towards the
// group's.
struct InputMoment {
  double shrinkage = 1;
  double mass = 0;      // tr C_i
  Tensor moment;        // f32 [n, n]: C_i, or none: then through the tokens
  RoutedTokens tokens;  // of the expert
};

// A = W C~ Bᵀ (B C~ Bᵀ)⁻¹: w [m, n], a [m, r].
void fit_input_factor(Backend& backend, const ExpertActivations& activations, const InputMoment& moment,
                      const InputBasis& basis, const Tensor& w, const Tensor& a);

// The hidden elements [t, m] of an expert, and those that its converted gate and up give, f32, times tokens' weights.
struct HiddenPair {
  Tensor original, converted;
};

// A = Bᵀ W H (H' + ridge)⁻¹ with H = sum of h h'ᵀ + ridge, H' = sum of h' h'ᵀ for the pairs h, h', both shrunk towards
// h' = h: projected f32 [r, m] is Bᵀ W, a [r, m]. shrinkage: in tokens.
void fit_output_factor(Backend& backend, const Tensor& projected, const HiddenPair& hidden, double shrinkage,
                       const Tensor& a);

}  // namespace molae
