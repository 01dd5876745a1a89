#pragma once

#include <cstdint>
#include <vector>

#include "core/backend.h"

namespace molae {

// The other half of fitting factors to inputs: a better B for given A_i. The B of CalibratedGroup is the best if every
// expert saw the inputs of the group; its factors then are fitted to C~_i, the moment of their own inputs, and for
// those
//   sum_i c_i A_iᵀ D_i A_i B C~_i = sum_i c_i A_iᵀ D_i W_i C~_i
// gives the B that minimizes sum_i c_i tr(D_i (W_i - A_i B) C~_i (W_i - A_i B)ᵀ). Conjugate gradients from the present
// B never make it worse, wherever they stop. They are preconditioned with what the left side would be if C~_i = C / tr
// C were true, which they would then solve in one step. Products with C_i go through the expert's tokens, (Y Xᵀ) X.
// A little inertia, a multiple of (B - present B) C on the left side, keeps directions still that no factors use.
//
// Memory: one r^2 of floats for each expert, and ten [r, n] of doubles.
class Alternation {
 public:
  // x [T, n] f32: inputs of the layer. l [n, n] f64: C = L Lᵀ, of trace mass. b [r, n] f32: the present B.
  Alternation(Backend& backend, Tensor x, Tensor l, double mass, Tensor b);

  // What reaches an expert: c_i C~_i = (1 - shrinkage) sum of s^2 x xᵀ + shrinkage c_i C / tr C.
  struct Inputs {
    Tensor rows;    // i32 [t], of x
    Tensor scales;  // f32 [t]
    double mass = 0;
    double shrinkage = 1;
  };
  // row_weights f64 [m]: D_i; w f32 [m, n], a f32 [m, r].
  void add(const Inputs& inputs, const Tensor& row_weights, const Tensor& w, const Tensor& a);

  int64_t experts() const { return experts_; }

  // The new B, f64 [r, n].
  Tensor solve();

 private:
  struct Member {
    Tensor rows, scales;
    double own = 0;  // 1 - shrinkage
    Tensor normal;   // A_iᵀ D_i A_i, f32 [r, r]
  };

  Tensor scaled_rows(const Tensor& a, const Tensor& weights);
  Tensor gathered(const Member& member);
  Tensor times_moment(const Tensor& y);
  Tensor left_side(const Tensor& b);
  Tensor preconditioned(const Tensor& residual);

  Backend& backend_;
  CalibrationSteps& steps_;
  Tensor x_, l_;
  double mass_;
  Tensor b_;
  int64_t experts_ = 0;
  std::vector<Member> members_;
  Tensor own_residual_;     // f32 [r, n]: right side less left side, the part of the experts' own inputs
  Tensor shared_residual_;  // f64 [r, n]: the same of the group's inputs, before the product with C
  Tensor shared_normal_;    // f64 [r, r]: sum of shrinkage c_i / tr C A_iᵀ D_i A_i
  Tensor normal_;           // f64 [r, r]: sum of c_i A_iᵀ D_i A_i, in solve() its Cholesky factor, with inertia
};

}  // namespace molae
