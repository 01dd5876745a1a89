#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "core/backend.h"
#include "core/factorization/alternation.h"
#include "core/factorization/expert_activations.h"
#include "core/factorization/factor_fit.h"
#include "core/factorization/group_tokens.h"
#include "core/factorization/routed_output.h"
#include "core/factorization/weighted_stack.h"

namespace molae {

// What of an expert is meant.
enum class ExpertMatrix : uint8_t { Gate, Up, Down };

// Calibrated factorization of one group of experts: bases and factors that lose least of what the experts compute on
// the tokens that a calibration text sends them, not of their weights.
//
// With x the inputs of the layer, w the routing weights, and C_i the sum of w^2 x xᵀ over the tokens of expert i:
//   gate, up  B minimizes sum_i tr(D_i (W_i - A_i B) C (W_i - A_i B)ᵀ) c_i over all A_i, C = sum_i C_i = L Lᵀ, c_i the
//             share of expert i in tr C: the top eigenvectors V of Lᵀ (sum_i c_i W_iᵀ D_i W_i) L give B = Vᵀ L⁻¹.
//             D_i is how strongly the expert's output answers to each row of W_i: the mean of (act'(gate) up)^2
//             (gate) or act(gate)^2 (up), times the squared norm of the row's column of W_down.
//             Then A_i is fitted to the expert's own inputs, their moment shrunk towards the group's:
//             C~_i = (1 - l) C_i / tr C_i + l C / tr C, l = shrinkage / (shrinkage + tokens of i).
//   down      B has the top eigenvectors of the second moment of the group's routed output, A_i = Bᵀ W_i: the optimum
//             for the sum over the group, experts that fire together included.
// Two passes over the experts: observe() all, solve() every operator, project() all. Between the two, any number of
// alternations may give gate or up a B for factors that are fitted to each expert's own inputs, see Alternation. The
// eigenvalues of an operator say what dropping each direction costs in squared output over the calibration tokens:
// comparable between operators, groups and (after weighing) layers. Memory: 5 matrices of n^2 doubles, n^2 floats for
// each expert that more than n tokens reach, and where several experts share, a float [t, n] for the t tokens of the
// group. What is computed of an expert's tokens exists for 1024 of them at a time.
class CalibratedGroup {
 public:
  struct Options {
    int64_t hidden_size = 0;        // n
    int64_t intermediate_size = 0;  // m
    Activation activation = Activation::Silu;
    bool shared_gate_up = false;  // one B for gate and up: solve(Gate) is for both
    double shrinkage = 0;         // in tokens
    // Fit A_i to the expert's own moment; otherwise to that of the group.
    bool refit = true;
    // Weigh the rows of gate and up by D_i; otherwise equally.
    bool weigh_rows = true;
    // Fit A_i of down to the hidden elements that the converted gate and up give.
    bool refit_down = false;
  };

  struct Expert {
    Tensor gate, up, down;  // [m, n], [m, n], [n, m]
  };

  // Where the factors of an expert go; without a tensor for operators that stay as they are.
  struct Factors {
    Tensor gate, up, down;  // [m, r], [m, r], [r, m]
  };

  // x [T, n] f32 and its routing; the group's experts by their numbers in the routing, each once.
  CalibratedGroup(Backend& backend, Options options, Tensor x, const Routing& routing, std::vector<int32_t> experts);

  int64_t tokens(int64_t index) const;  // that the routing sends to the index-th expert

  // Pass 1. Throws NonFinite naming the matrix and the row and column of its first NaN or infinity.
  void observe(int64_t index, const Expert& expert);

  // Ends pass 1 for this operator: all its eigenvalues, descending. Once for each operator, instead of solve().
  std::vector<double> spectrum(ExpertMatrix matrix);
  // The same, and b [r, n] (down: [n, r]) gets the basis, rounded to its dtype.
  std::vector<double> solve(ExpertMatrix matrix, const Tensor& b);

  // Pass 1b, for gate or up with a basis of its own: fits the factors of all experts to the present B, in f32, then B
  // to the factors. The sum over the experts of c_i tr(D_i (W_i - A_i B) C~_i (W_i - A_i B)ᵀ) never grows but by
  // rounding. end_alternation() rewrites b, the tensor that solve() got or one of its shape.
  void begin_alternation(ExpertMatrix matrix);
  void add_to_alternation(ExpertMatrix matrix, int64_t index, const Tensor& w);
  void end_alternation(ExpertMatrix matrix, const Tensor& b);

  // What is lost on a sample of an expert's tokens. Of gate and up: the sum of w^2 D (difference of
  // pre-activations)^2, of down and of the whole expert: of w^2 |difference of outputs|^2; beside each the same of the
  // original itself.
  struct Loss {
    std::array<double, 3> lost{};
    std::array<double, 3> original{};
    double lost_output = 0;  // of original[down]
  };
  // Pass 2: fits the expert's factors. Throws ShapeMismatch for those of another latent size than their basis.
  Loss project(int64_t index, const Expert& expert, const Factors& factors);

 private:
  struct Member {
    ExpertTokens tokens;
    double mass = 0;                  // tr C_i
    Tensor moment;                    // f32 [n, n]: C_i, where that is less work than going through the tokens again
    Tensor gate_weights, up_weights;  // D_i, f64 [m]

    int64_t count() const { return tokens.all.count(); }
  };

  void check_index(int64_t index) const;
  void check(int64_t index, const Expert& expert) const;
  void check(const Factors& factors) const;
  void check_finite(const Expert& expert);
  void observe_unused(Member& member, const Expert& expert);
  Tensor row_weights(const std::vector<double>& slopes, const std::vector<double>& norms, double squared_weights) const;
  bool fits_own_inputs(const Member& member) const;
  void add_rows(Member& member, const Expert& expert, double mass);
  void factor_moment();
  std::vector<double> decompose(ExpertMatrix matrix, const Tensor& basis);
  void orthonormalize(const Tensor& rows);
  InputBasis store_input_basis(const Tensor& rows, const Tensor& b);
  void store_output_basis(const Tensor& vectors, const Tensor& b);
  double shrinkage_of(const Member& member) const;
  InputMoment moment_of(const Member& member) const;
  void fit_output(const Member& member, const Expert& expert, const Factors& factors);
  Loss measure(const Member& member, const Expert& expert, const Factors& factors);
  std::pair<PreActivations, PreActivations> pre_activations(const RoutedTokens& tokens, const Expert& expert,
                                                            const Factors& factors) const;
  const InputBasis& basis_of(ExpertMatrix matrix) const;
  Alternation& alternation_of(ExpertMatrix matrix) const;

  Backend& backend_;
  CalibrationSteps& steps_;
  Options options_;
  ExpertActivations activations_;
  std::vector<Member> members_;
  int64_t total_tokens_ = 0;
  double mass_ = 0;        // tr C
  Tensor moment_;          // C, after factor_moment() L
  bool factored_ = false;  // moment_ is L
  // The first is for both gate and up where they share a basis. Gone once solved for.
  std::unique_ptr<WeightedStack> gate_stack_, up_stack_;
  std::unique_ptr<RoutedOutput> output_;
  InputBasis gate_, up_;
  std::unique_ptr<Alternation> gate_alternation_, up_alternation_;
  Tensor down_basis_;       // f32 [n, r], as stored
  Tensor down_projection_;  // f32 [r, n]: (BᵀB)⁻¹ Bᵀ
};

}  // namespace molae
