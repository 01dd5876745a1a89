#pragma once

#include "core/activation.h"
#include "core/tensor/tensor.h"

namespace molae {

// What calibrated factorization needs beside linear algebra. Matrices of moments and triangles are f64, activations
// f32.
class CalibrationSteps {
 public:
  virtual ~CalibrationSteps() = default;

  // moment [n, n], lower triangle += sum over rows of s^2 x xᵀ, x [T, n] of any floating dtype but f64, s [T] f32 or
  // none. At most 512 products are summed in f32, everything else in f64.
  virtual void accumulate_moment(const Tensor& x, const Tensor& scales, const Tensor& moment) = 0;

  // out [t, n] = the rows of x [T, n] that rows [t] i32 name, times scales [t] where there are some. f32.
  virtual void gather_rows(const Tensor& x, const Tensor& rows, const Tensor& scales, const Tensor& out) = 0;
  // The named rows of to [T, n] += from [t, n]. f32; no row is named twice.
  virtual void scatter_add_rows(const Tensor& from, const Tensor& rows, const Tensor& to) = 0;

  // For pre-activations gate and up [t, m] and scales [t] of tokens: hidden [t, m] = scale act(gate) up, and
  // gate_slopes [m] += sum of (scale act'(gate) up)^2, up_slopes [m] += sum of (scale act(gate))^2 (f64): how strongly
  // the hidden elements answer to their two pre-activations.
  virtual void expert_hidden(const Tensor& gate, const Tensor& up, const Tensor& scales, Activation activation,
                             const Tensor& hidden, const Tensor& gate_slopes, const Tensor& up_slopes) = 0;
  // norms [m] f64 = the squared norms of the columns of w [n, m].
  virtual void column_norms(const Tensor& w, const Tensor& norms) = 0;
  // The sum of weights[j] s[t]^2 (a[t, j] - b[t, j])^2, a and b [t, m] f32, s [t] f32 or none,
  // weights [m] f64 or none. Without b: of a itself.
  virtual double weighted_distance(const Tensor& a, const Tensor& b, const Tensor& scales, const Tensor& weights) = 0;

  // The sum of products of the elements of a and b, f64.
  virtual double dot(const Tensor& a, const Tensor& b) = 0;
  virtual void add_scaled(const Tensor& x, double factor, const Tensor& y) = 0;  // y += factor x, f64

  virtual double trace(const Tensor& a) = 0;
  virtual void add_to_diagonal(const Tensor& a, double value) = 0;
  virtual void mirror_triangle(const Tensor& a) = 0;  // the upper triangle of a [n, n] becomes that of the lower one
  // a [n, n] (its lower triangle is read) becomes its lower Cholesky factor, with zeros above. Throws NoConvergence for
  // a matrix that is not positive definite.
  virtual void cholesky(const Tensor& a) = 0;
  // The lower triangle of s becomes that of Lᵀ S L.
  virtual void congruence(const Tensor& l, const Tensor& s) = 0;
  virtual void divide_by_triangle(const Tensor& x, const Tensor& l) = 0;  // x [r, n] becomes x L⁻¹
  virtual void solve_triangle(const Tensor& l, const Tensor& x) = 0;      // x [r, n] becomes L⁻¹ x, L [r, r]
};

}  // namespace molae
