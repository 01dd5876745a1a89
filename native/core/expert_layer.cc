#include "core/expert_layer.h"

#include <algorithm>
#include <string>

#include "core/error.h"
#include "core/expect.h"

namespace molae {
namespace {

std::string expert_name(const char* op, const char* part, int64_t index) {
  return std::string(op) + part + "[" + std::to_string(index) + "]";
}

class LayerCheck {
 public:
  LayerCheck(const ExpertLayer& layer, const Backend* owner)
      : layer_(layer), owner_(owner), dtype_(layer.gate.per_expert[0].dtype()) {}

  void matrix(const Tensor& tensor, const std::string& name, int64_t rows, int64_t cols) const {
    if (!tensor) fail(ErrorCode::InvalidArgument, "The experts lack ", name);
    expect_owner(tensor, name, owner_);
    expect_shape(tensor, name, {rows, cols});
    if (tensor.dtype() == DType::I32 || (tensor.dtype() == DType::F64) != (dtype_ == DType::F64)) {
      fail(ErrorCode::DTypeMismatch, "Expected ", dtype_ == DType::F64 ? "f64" : "f32, f16, bf16, q8 or q4", " for ",
           name, " but received ", dtype_name(tensor.dtype()), ": a layer is either all f64, or any mix of the others");
    }
  }

  // out x in is the shape of one dense expert; the shared side of gate and up is `in`, that of down is `out`.
  void op(const ExpertOperator& op, const char* name, int64_t out, int64_t in, bool shares_output) const {
    const auto experts = static_cast<int64_t>(op.per_expert.size());
    if (experts != layer_.num_experts()) {
      fail(ErrorCode::ShapeMismatch, "Expected ", layer_.num_experts(), " experts for ", name, " but received ",
           experts);
    }
    if (!op.latent()) {
      for (int64_t i = 0; i < experts; ++i) matrix(op.per_expert[i], expert_name(name, "", i), out, in);
      return;
    }
    if (op.shared.size() != layer_.groups.size()) {
      fail(ErrorCode::ShapeMismatch, "Expected ", layer_.groups.size(), " group matrices for ", name, " but received ",
           op.shared.size());
    }
    for (size_t g = 0; g < layer_.groups.size(); ++g) {
      const Tensor& b = op.shared[g];
      if (!b || b.rank() != 2) fail(ErrorCode::ShapeMismatch, "Expected a matrix for ", expert_name(name, ".b", g));
      const int64_t rank = shares_output ? b.cols() : b.rows();
      if (rank < 1) fail(ErrorCode::ShapeMismatch, "The latent size of ", expert_name(name, ".b", g), " is 0");
      matrix(b, expert_name(name, ".b", g), shares_output ? out : rank, shares_output ? rank : in);
      for (int32_t i : layer_.groups[g]) {
        matrix(op.per_expert[i], expert_name(name, ".a", i), shares_output ? rank : out, shares_output ? in : rank);
      }
    }
  }

  void groups() const {
    std::vector<bool> seen(layer_.num_experts(), false);
    for (const auto& group : layer_.groups) {
      if (group.empty()) fail(ErrorCode::InvalidArgument, "A group of experts is empty");
      for (int32_t i : group) {
        if (i < 0 || i >= layer_.num_experts()) {
          fail(ErrorCode::InvalidArgument, "A group names expert ", i, " of ", layer_.num_experts());
        }
        if (seen[i]) fail(ErrorCode::InvalidArgument, "Expert ", i, " is in two groups");
        seen[i] = true;
      }
    }
    for (size_t i = 0; i < seen.size(); ++i) {
      if (!seen[i]) fail(ErrorCode::InvalidArgument, "Expert ", i, " is in no group");
    }
  }

 private:
  const ExpertLayer& layer_;
  const Backend* owner_;
  DType dtype_;
};

// A side of an operator that is the layer's own size whether the operator is dense or latent.
int64_t side(const Tensor& tensor, const char* name, bool rows) {
  if (!tensor || tensor.rank() != 2) fail(ErrorCode::ShapeMismatch, "Expected matrices for ", name);
  return rows ? tensor.rows() : tensor.cols();
}

// Not all that begins at one address: the first rows of a matrix do, too.
bool same(const Tensor& a, const Tensor& b) {
  return a.data() == b.data() && a.dtype() == b.dtype() && a.shape() == b.shape();
}

}  // namespace

bool ExpertLayer::shares_gate_up_basis() const {
  return gate.latent() && std::equal(gate.shared.begin(), gate.shared.end(), up.shared.begin(), up.shared.end(), same);
}

std::vector<int32_t> ExpertLayer::group_of_expert() const {
  std::vector<int32_t> group_of(num_experts(), 0);
  for (size_t g = 0; g < groups.size(); ++g) {
    for (int32_t i : groups[g]) group_of[i] = static_cast<int32_t>(g);
  }
  return group_of;
}

void ExpertLayer::take_sizes() {
  if (gate.per_expert.empty()) fail(ErrorCode::InvalidArgument, "A layer needs at least one expert");
  intermediate_size = side(gate.per_expert[0], "gate", true);
  hidden_size = gate.latent() ? side(gate.shared[0], "gate.b", false) : side(gate.per_expert[0], "gate", false);
}

void check_layer(const ExpertLayer& layer, const Backend* owner) {
  if (layer.gate.per_expert.empty()) fail(ErrorCode::InvalidArgument, "A layer needs at least one expert");
  const LayerCheck check(layer, owner);
  if (layer.any_latent() || !layer.groups.empty()) check.groups();
  const int64_t n = layer.hidden_size;
  const int64_t m = layer.intermediate_size;
  if (n < 1 || m < 1) fail(ErrorCode::ShapeMismatch, "Experts of size ", m, " x ", n, " are empty");
  check.op(layer.gate, "gate", m, n, false);
  check.op(layer.up, "up", m, n, false);
  check.op(layer.down, "down", n, m, true);
  if (layer.shared_expert) {
    const SharedExpert& shared = *layer.shared_expert;
    const int64_t width = side(shared.gate, "sharedExpert.gate", true);
    if (width < 1) fail(ErrorCode::ShapeMismatch, "The intermediate size of sharedExpert.gate is 0");
    check.matrix(shared.gate, "sharedExpert.gate", width, n);
    check.matrix(shared.up, "sharedExpert.up", width, n);
    check.matrix(shared.down, "sharedExpert.down", n, width);
    if (shared.gate_logit) check.matrix(*shared.gate_logit, "sharedExpert.gateLogit", 1, n);
  }
}

}  // namespace molae
