#pragma once

#include <cstdint>
#include <vector>

#include "core/backend.h"

namespace molae {

// What a group of experts puts out for the tokens that reach it, y = sum_i w_i W_down,i h_i, and the directions in
// which it is largest: the leading eigenvectors of the sum of y yᵀ, experts that fire together included.
//
// Several experts' outputs are summed up token by token. An expert alone needs none: with W = Q Rᵀ, R triangular, the
// eigenproblem is that of Rᵀ (sum of w² h hᵀ) R, as wide as the expert.
class RoutedOutput {
 public:
  // tokens: how many reach the group. experts: of the group. m: width of one.
  RoutedOutput(Backend& backend, int64_t tokens, int64_t n, int64_t m, size_t experts);

  // Of the expert whose tokens are added next, down [n, m].
  void begin_expert(const Tensor& down);
  // rows i32 [t]: which of the group's tokens these are. hidden f32 [t, m]: w h.
  void add(const Tensor& rows, const Tensor& hidden);
  // In place of tokens, where none reaches the group: as if h were white.
  void add_white(const Tensor& down);

  // All n eigenvalues, descending; vectors f64 [r, n] gets orthonormal rows. Once: what was added is used up.
  std::vector<double> decompose(const Tensor& vectors);

 private:
  std::vector<double> decompose_alone(const Tensor& vectors);
  std::vector<double> decompose_moment(const Tensor& vectors);

  Backend& backend_;
  CalibrationSteps& steps_;
  Tensor sums_;           // f32 [tokens, n]: y, of several experts
  Tensor moment_;         // f64 [n, n], lower triangle: sum of y yᵀ
  Tensor hidden_moment_;  // f64 [m, m], lower triangle, of an expert alone
  Tensor down_;           // [n, m], of an expert alone f64, of the present one of several f32
};

}  // namespace molae
