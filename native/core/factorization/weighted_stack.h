#pragma once

#include <cstdint>
#include <vector>

#include "core/backend.h"

namespace molae {

// S: the matrices W_i [m, n] of a group's gate or up (or of both), their rows weighted by sqrt(c_i D_i), one above the
// other; and the directions in which S x is largest where C = L Lᵀ is the moment of x.
//
// Fewer rows than columns are kept as they are, and the eigenproblem is theirs: S C Sᵀ. Otherwise it is that of Lᵀ SᵀS
// L.
class WeightedStack {
 public:
  // rows: how many all matrices have together.
  WeightedStack(Backend& backend, int64_t rows, int64_t n);

  // row_weights f64 [m]: D_i; mass: c_i. Matrices that are left out count as zeros.
  void add(const Tensor& w, const Tensor& row_weights, double mass);

  // All n eigenvalues of Lᵀ SᵀS L, descending. basis f64 [r, n] gets rows that span those of VᵀL⁻¹, V the leading
  // eigenvectors. l f64 [n, n], lower triangle. Once: what was added is used up.
  std::vector<double> decompose(const Tensor& l, const Tensor& basis);

 private:
  bool is_narrow() const { return static_cast<bool>(stack_); }
  std::vector<double> decompose_rows(const Tensor& l, const Tensor& basis);
  std::vector<double> decompose_moment(const Tensor& l, const Tensor& basis);

  Backend& backend_;
  CalibrationSteps& steps_;
  Tensor stack_;      // f32 [rows, n]: S, where it is narrow
  int64_t used_ = 0;  // rows of it
  Tensor moment_;     // f64 [n, n], lower triangle: SᵀS, where it is not
};

}  // namespace molae
