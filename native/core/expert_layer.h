#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "core/activation.h"
#include "core/tensor/tensor.h"

namespace molae {

// One of the three matrices of every routed expert, dense or factorized.
//   dense:  per_expert[i] = W_i, shared empty
//   latent: gate, up: W_i ~ A_i B_g, per_expert[i] = A_i [m, r_g], shared[g] = B_g [r_g, n]
//           down:     W_i ~ B_g A_i, per_expert[i] = A_i [r_g, m], shared[g] = B_g [n, r_g]
struct ExpertOperator {
  std::vector<Tensor> per_expert;
  std::vector<Tensor> shared;

  bool latent() const { return !shared.empty(); }
};

// An expert that sees every token, scaled by sigmoid(x . gate_logit) where there is a gate_logit [1, n].
struct SharedExpert {
  Tensor gate;  // [ms, n]
  Tensor up;    // [ms, n]
  Tensor down;  // [n, ms]
  std::optional<Tensor> gate_logit;
};

// The experts of one MoE layer: any operator may be dense or latent, ranks may differ between groups.
// When gate.shared and up.shared are the same tensors, z_gate = z_up and is computed once.
struct ExpertLayer {
  int64_t hidden_size = 0;        // n, as take_sizes() finds it
  int64_t intermediate_size = 0;  // m
  Activation activation = Activation::Silu;
  std::vector<std::vector<int32_t>> groups;  // a partition of the experts; may be empty when no operator is latent
  ExpertOperator gate, up, down;
  std::optional<SharedExpert> shared_expert;

  // The sizes, from the first expert. Throws InvalidArgument where there is none, ShapeMismatch for what is no matrix.
  void take_sizes();

  int64_t num_experts() const { return static_cast<int64_t>(gate.per_expert.size()); }
  bool any_latent() const { return gate.latent() || up.latent() || down.latent(); }
  bool shares_gate_up_basis() const;
  std::vector<int32_t> group_of_expert() const;
};

// Every shape, dtype, owner and group, for Backend::prepare. Throws a typed error that names the operator, the expert
// or group, and both shapes.
void check_layer(const ExpertLayer& layer, const Backend* owner);

}  // namespace molae
