#include "cpu/layer/layer_weights.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "core/error.h"

namespace molae::cpu {
namespace {

std::optional<SharedWeights<Tensor>> shared_weights_of(const std::optional<SharedExpert>& shared) {
  if (!shared) return std::nullopt;
  return SharedWeights<Tensor>{shared->gate, shared->up, shared->down, shared->gate_logit};
}

// Calls body(weight) for all of a layer, once for those that gate and up share.
template <class Weight, class Body>
void for_weights(const LayerWeights<Weight>& layer, Body body) {
  for (const OperatorWeights<Weight>* op : {&layer.gate, &layer.up, &layer.down}) {
    std::for_each(op->per_expert.begin(), op->per_expert.end(), body);
    if (op == &layer.up && layer.shares_basis) continue;
    std::for_each(op->shared.begin(), op->shared.end(), body);
  }
  if (!layer.shared_expert) return;
  for (const Weight* weight : {&layer.shared_expert->gate, &layer.shared_expert->up, &layer.shared_expert->down}) {
    body(*weight);
  }
  if (layer.shared_expert->gate_logit) body(*layer.shared_expert->gate_logit);
}

// Packs the weights of a layer one after the other into one block of memory, which Linux gives huge pages however small
// each weight is: with weights of 0.6 to 2.9 MB in pages of 4 KiB, latent layers of bf16 took 2 to 16% longer on a
// Zen 4.
class Packer {
 public:
  Packer(Backend& backend, int threads, const LayerWeights<Tensor>& layer, PackedInputs inputs,
         const Cancellation& cancel)
      : threads_(threads), inputs_(inputs), cancel_(cancel) {
    size_t bytes = 0;
    for_weights(layer, [&](const Tensor& weight) { bytes += PackedWeight::bytes_of(weight); });
    block_ = backend.allocate(bytes);
  }

  PackedWeight one(const Tensor& weight) {
    cancel_.check();
    const size_t begin = std::exchange(end_, end_ + PackedWeight::bytes_of(weight));
    return {block_, begin, threads_, weight, inputs_};
  }

  std::vector<PackedWeight> all(const std::vector<Tensor>& weights) {
    std::vector<PackedWeight> packed;
    packed.reserve(weights.size());
    for (const Tensor& weight : weights) packed.push_back(one(weight));
    return packed;
  }

  SharedWeights<PackedWeight> shared_expert(const SharedWeights<Tensor>& shared) {
    SharedWeights<PackedWeight> packed{one(shared.gate), one(shared.up), one(shared.down), {}};
    if (shared.gate_logit) packed.gate_logit = one(*shared.gate_logit);
    return packed;
  }

 private:
  int threads_;
  PackedInputs inputs_;
  const Cancellation& cancel_;
  std::shared_ptr<Buffer> block_;
  size_t end_ = 0;  // of what is packed
};

}  // namespace

LayerWeights<Tensor> weights_of(const ExpertLayer& layer) {
  return {layer.hidden_size,
          layer.intermediate_size,
          layer.activation,
          layer.group_of_expert(),
          static_cast<int64_t>(layer.groups.size()),
          layer.shares_gate_up_basis(),
          {layer.gate.per_expert, layer.gate.shared},
          {layer.up.per_expert, layer.up.shared},
          {layer.down.per_expert, layer.down.shared},
          shared_weights_of(layer.shared_expert)};
}

bool can_pack(const LayerWeights<Tensor>& layer) {
  bool all = true;
  for_weights(layer, [&](const Tensor& weight) { all = all && PackedWeight::supports(weight.dtype()); });
  return all;
}

LayerWeights<PackedWeight> pack(Backend& backend, int threads, const LayerWeights<Tensor>& layer, PackedInputs inputs,
                                const Cancellation& cancel) {
  Packer packer(backend, threads, layer, inputs, cancel);
  LayerWeights<PackedWeight> packed{layer.hidden_size,
                                    layer.intermediate_size,
                                    layer.activation,
                                    layer.group_of,
                                    layer.num_groups,
                                    layer.shares_basis,
                                    {packer.all(layer.gate.per_expert), packer.all(layer.gate.shared)},
                                    {packer.all(layer.up.per_expert), {}},
                                    {packer.all(layer.down.per_expert), packer.all(layer.down.shared)},
                                    std::nullopt};
  packed.up.shared = layer.shares_basis ? packed.gate.shared : packer.all(layer.up.shared);
  if (layer.shared_expert) packed.shared_expert = packer.shared_expert(*layer.shared_expert);
  return packed;
}

template <class Weight>
void check_inputs(const LayerWeights<Weight>& layer, PackedInputs inputs) {
  if (inputs != PackedInputs::BF16) return;
  bool any = false;
  for_weights(layer, [&](const Weight& weight) { any = any || weight.dtype() == DType::BF16; });
  if (any) return;
  fail(ErrorCode::DTypeMismatch, "Expected bf16 weights to multiply inputs rounded to bf16 with, but this layer has ",
       dtype_name(layer.gate.per_expert[0].dtype()));
}

template void check_inputs(const LayerWeights<Tensor>&, PackedInputs);
template void check_inputs(const LayerWeights<PackedWeight>&, PackedInputs);

LayerWeights<PackedWeight> with_inputs(LayerWeights<PackedWeight> layer, PackedInputs inputs) {
  const auto take = [&](PackedWeight& weight) { weight = weight.with_inputs(inputs); };
  for (OperatorWeights<PackedWeight>* op : {&layer.gate, &layer.up, &layer.down}) {
    std::for_each(op->per_expert.begin(), op->per_expert.end(), take);
    std::for_each(op->shared.begin(), op->shared.end(), take);
  }
  if (layer.shared_expert) {
    for (PackedWeight* weight : {&layer.shared_expert->gate, &layer.shared_expert->up, &layer.shared_expert->down}) {
      take(*weight);
    }
    if (layer.shared_expert->gate_logit) take(*layer.shared_expert->gate_logit);
  }
  return layer;
}

size_t packed_bytes(const LayerWeights<PackedWeight>& layer) {
  size_t bytes = 0;
  for_weights(layer, [&](const PackedWeight& weight) { bytes += weight.bytes(); });
  return bytes;
}

}  // namespace molae::cpu
