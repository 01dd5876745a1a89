#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "core/backend.h"
#include "core/expert_layer.h"
#include "cpu/linear/packed_weight.h"

// The weights of a layer (core/expert_layer.h) as the CPU keeps them: as they came, or packed.
namespace molae::cpu {

template <class Weight>
struct OperatorWeights {
  std::vector<Weight> per_expert;
  std::vector<Weight> shared;

  bool latent() const { return !shared.empty(); }
};

template <class Weight>
struct SharedWeights {
  Weight gate, up, down;
  std::optional<Weight> gate_logit;
};

template <class Weight>
struct LayerWeights {
  int64_t hidden_size;
  int64_t intermediate_size;
  Activation activation;
  std::vector<int32_t> group_of;  // expert by expert
  int64_t num_groups;
  bool shares_basis;  // z_up is z_gate
  OperatorWeights<Weight> gate, up, down;
  std::optional<SharedWeights<Weight>> shared_expert;

  int64_t num_experts() const { return static_cast<int64_t>(gate.per_expert.size()); }
};

LayerWeights<Tensor> weights_of(const ExpertLayer& layer);

// Not where any are f64 or in blocks.
bool can_pack(const LayerWeights<Tensor>& layer);
LayerWeights<PackedWeight> pack(Backend& backend, int threads, const LayerWeights<Tensor>& layer, PackedInputs inputs,
                                const Cancellation& cancel);
// Throws DTypeMismatch where no weight is bf16, and inputs are to be rounded to it.
template <class Weight>
void check_inputs(const LayerWeights<Weight>& layer, PackedInputs inputs);
// The same memory.
LayerWeights<PackedWeight> with_inputs(LayerWeights<PackedWeight> layer, PackedInputs inputs);
size_t packed_bytes(const LayerWeights<PackedWeight>& layer);

}  // namespace molae::cpu
