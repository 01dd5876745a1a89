#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "core/factorization/calibrated_group.h"
#include "native/tensors.h"

// Small groups of experts with the definitions of what calibrated factorization minimizes, in plain f64 loops.
namespace molae::test {

inline constexpr int64_t kHidden = 12, kIntermediate = 7, kMembers = 3, kTokens = 60, kTopK = 2;
inline constexpr ExpertMatrix kInputMatrices[] = {ExpertMatrix::Gate, ExpertMatrix::Up};

Values product(const Values& a, bool transpose_a, const Values& b, bool transpose_b, int64_t m, int64_t n, int64_t k);
// Solves spd X = rhs, spd [r, r], rhs [r, n], by elimination.
Values solved(Values spd, Values rhs, int64_t r, int64_t n);
Values without(Values w, const Values& part);
// tr(D E C Eᵀ), E [m, n]
double weighed(const Values& e, const Values& d, const Values& c);
// A = W C Bᵀ (B C Bᵀ)⁻¹ [m, r]
Values best_factors(const Values& w, const Values& b, const Values& c);
double loss_of(const Values& w, const Values& a, const Values& b, const Values& d, const Values& c);

// The matrices of an expert, and what its definitions say of it.
struct ReferenceExpert {
  Values gate, up, down;
  Values moment;                    // C_i
  double mass = 0;                  // c_i
  int64_t tokens = 0;               // t
  Values gate_weights, up_weights;  // D_i
  CalibratedGroup::Expert tensors;

  const Values& matrix(ExpertMatrix which) const { return which == ExpertMatrix::Gate ? gate : up; }
  const Values& row_weights(ExpertMatrix which) const {
    return which == ExpertMatrix::Gate ? gate_weights : up_weights;
  }
  const Tensor& tensor(ExpertMatrix which) const { return which == ExpertMatrix::Gate ? tensors.gate : tensors.up; }
};

struct Setup {
  int64_t experts = 2 * kMembers;       // of the layer
  std::vector<int32_t> group{1, 2, 5};  // those of the group
  std::vector<int32_t> unused;          // experts that no token reaches
  int64_t planted_rank = 0;             // of the joint row space of gate, and of up; 0: none
  int64_t down_rank = 0;                // of each W_down; 0: full
  int64_t tokens = kTokens;
  double spread = 1;  // powers of ten between the sizes of inputs' directions
};

// A layer's inputs and routing, and a group of its experts.
struct Problem {
  Problem(Context& context, const Setup& setup);

  CalibratedGroup open(CalibratedGroup::Options options) const;
  // C~_i
  Values shrunk_moment(const ReferenceExpert& expert, double shrinkage) const;
  // Of B with the best factors for the group's inputs.
  double shared_loss(ExpertMatrix which, const Values& b) const;
  // The routed output of the group [T, n], with these W_down (U A_i where converted).
  Values routed_output(const std::vector<Values>& downs) const;

  Backend& backend;
  std::vector<int32_t> members;
  int64_t count;
  Values x, weights;
  std::vector<int32_t> ids;
  Tensor inputs;
  Routing routing;
  std::vector<ReferenceExpert> experts;
  Values shared_moment;  // C, its ridge included
  double mass = 0;       // tr C

 private:
  void make_inputs(Context& context, double spread);
  void make_routing(Context& context, const Setup& setup);
  ReferenceExpert make_expert(Context& context, const Setup& setup, int32_t number);
  void observe(ReferenceExpert& expert, int32_t number) const;
  void sum_moments();

  Values gate_space_, up_space_;
};

void expect_near(double actual, double wanted, double relative, const std::string& what);

// One group solved for, and its factors.
struct Converted {
  Tensor gate_basis, up_basis, down_basis;
  std::array<std::vector<double>, 3> spectra;
  std::vector<CalibratedGroup::Factors> factors;
  std::vector<CalibratedGroup::Loss> losses;

  const Tensor& basis(ExpertMatrix which) const { return which == ExpertMatrix::Gate ? gate_basis : up_basis; }
  Tensor factor(ExpertMatrix which, size_t expert) const {
    return which == ExpertMatrix::Gate ? factors[expert].gate : factors[expert].up;
  }
};

Converted convert(Context& context, const Problem& problem, const CalibratedGroup::Options& options, int64_t r,
                  int alternations = 0, DType down_dtype = DType::F32);

// sum_i c_i tr(D_i (W_i - A_i B) C~_i (W_i - A_i B)ᵀ) of what was stored
double shrunk_loss(const Problem& problem, const Converted& converted, ExpertMatrix which, double shrinkage);

}  // namespace molae::test
