#pragma once

#include "core/expert_layer.h"
#include "native/routings.h"
#include "native/tensors.h"

// Random layers of dense and latent experts, and their forward pass in plain f64 loops.
namespace molae::test {

struct LayerOptions {
  int64_t hidden_size, intermediate_size, experts;
  std::vector<DType> dtypes;            // drawn from, matrix by matrix
  bool latent[3] = {true, true, true};  // gate, up, down
  bool shared_basis = false;            // of gate and up
  int64_t shared_size = 0;              // of the shared expert; 0: none
  bool shared_gate = false;
  Activation activation = Activation::Silu;
  int64_t rank_unit = 1;      // latent sizes are multiples of it
  bool nested_bases = false;  // of gate and up: those of one are the first rows of the other's
};

// An ExpertLayer and the values of its matrices.
struct RandomLayer {
  ExpertLayer layer;
  std::vector<Values> per_expert[3];
  std::vector<Values> shared[3];
  std::vector<int64_t> ranks[3];  // by group
  Values shared_expert[3];
  Values gate_logit;
};

RandomLayer random_layer(Context& context, const LayerOptions& options,
                         const std::vector<std::vector<int32_t>>& groups);

// y [T, n].
Values reference_forward(const RandomLayer& layer, const Values& x, const RandomRouting& routing);
// How large its elements are when signs are random, see expect_close.
Values forward_scale(const RandomLayer& layer, const Values& x, const RandomRouting& routing);

}  // namespace molae::test
