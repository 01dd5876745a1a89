#include "native/layers.h"

namespace molae::test {
namespace {

class LayerBuilder {
 public:
  LayerBuilder(Context& context, const LayerOptions& options, const std::vector<std::vector<int32_t>>& groups)
      : context_(context), options_(options) {
    result_.layer.groups = groups;
    result_.layer.hidden_size = options.hidden_size;
    result_.layer.intermediate_size = options.intermediate_size;
    result_.layer.activation = options.activation;
  }

  RandomLayer build() {
    const int64_t n = options_.hidden_size, m = options_.intermediate_size;
    add_operator(0, result_.layer.gate, m, n);
    add_operator(1, result_.layer.up, m, n);
    add_operator(2, result_.layer.down, n, m);
    if (options_.shared_size > 0) add_shared_expert();
    return std::move(result_);
  }

 private:
  Tensor matrix(int64_t rows, int64_t cols, Values& values) {
    values = random_values(context_, rows * cols, 1 / std::sqrt(static_cast<double>(cols)));
    const auto last = static_cast<int64_t>(options_.dtypes.size()) - 1;
    return make_tensor(context_, options_.dtypes[context_.integer(0, last)], {rows, cols}, values);
  }

  void add_operator(int index, ExpertOperator& op, int64_t out, int64_t in) {
    auto& values = result_.per_expert[index];
    values.resize(options_.experts);
    op.per_expert.resize(options_.experts);
    if (!options_.latent[index]) {
      for (int64_t i = 0; i < options_.experts; ++i) op.per_expert[i] = matrix(out, in, values[i]);
      return;
    }
    const bool down = index == 2;
    const auto& groups = result_.layer.groups;
    const bool reuse = index == 1 && options_.shared_basis;
    result_.shared[index].resize(groups.size());
    for (size_t g = 0; g < groups.size(); ++g) {
      const int64_t unit = options_.rank_unit;
      const int64_t rank = reuse ? result_.ranks[0][g] : unit * context_.integer(1, std::min(out, in) / unit);
      result_.ranks[index].push_back(rank);
      if (reuse) {
        op.shared.push_back(result_.layer.gate.shared[g]);
        result_.shared[1][g] = result_.shared[0][g];
      } else {
        op.shared.push_back(matrix(down ? out : rank, down ? rank : in, result_.shared[index][g]));
      }
      for (const int32_t i : groups[g]) op.per_expert[i] = matrix(down ? rank : out, down ? in : rank, values[i]);
    }
  }

  void add_shared_expert() {
    const int64_t n = options_.hidden_size, width = options_.shared_size;
    SharedExpert shared;
    shared.gate = matrix(width, n, result_.shared_expert[0]);
    shared.up = matrix(width, n, result_.shared_expert[1]);
    shared.down = matrix(n, width, result_.shared_expert[2]);
    if (options_.shared_gate) shared.gate_logit = matrix(1, n, result_.gate_logit);
    result_.layer.shared_expert = shared;
  }

  Context& context_;
  const LayerOptions& options_;
  RandomLayer result_;
};

Values times(const Values& w, int64_t rows, const Values& x) {
  Values y(rows, 0);
  const size_t cols = x.size();
  for (int64_t i = 0; i < rows; ++i) {
    for (size_t j = 0; j < cols; ++j) y[i] += w[i * cols + j] * x[j];
  }
  return y;
}

// W x of one expert, or A (B x), or for down B (A x).
Values apply(const RandomLayer& layer, int op, int32_t expert, int32_t group, int64_t rows, const Values& x) {
  const Values& w = layer.per_expert[op][expert];
  if (layer.shared[op].empty()) return times(w, rows, x);
  const Values& b = layer.shared[op][group];
  const int64_t rank = layer.ranks[op][group];
  return op == 2 ? times(b, rows, times(w, rank, x)) : times(w, rows, times(b, rank, x));
}

Values gated(const ExpertLayer& layer, Values gate, const Values& up) {
  for (size_t i = 0; i < gate.size(); ++i) gate[i] = activate(layer.activation, gate[i]) * up[i];
  return gate;
}

Values shared_output(const RandomLayer& layer, const Values& x) {
  const int64_t width = layer.layer.shared_expert->gate.rows();
  const Values hidden =
      gated(layer.layer, times(layer.shared_expert[0], width, x), times(layer.shared_expert[1], width, x));
  Values y = times(layer.shared_expert[2], layer.layer.hidden_size, hidden);
  if (layer.gate_logit.empty()) return y;
  const double scale = 1 / (1 + std::exp(-times(layer.gate_logit, 1, x)[0]));
  for (double& value : y) value *= scale;
  return y;
}

}  // namespace

RandomLayer random_layer(Context& context, const LayerOptions& options,
                         const std::vector<std::vector<int32_t>>& groups) {
  return LayerBuilder(context, options, groups).build();
}

Values reference_forward(const RandomLayer& layer, const Values& x, const RandomRouting& routing) {
  const int64_t n = layer.layer.hidden_size, m = layer.layer.intermediate_size;
  Values y(routing.tokens * n, 0);
  for (int64_t t = 0; t < routing.tokens; ++t) {
    const Values row(x.begin() + t * n, x.begin() + (t + 1) * n);
    const auto add = [&](const Values& part, double weight) {
      for (int64_t j = 0; j < n; ++j) y[t * n + j] += weight * part[j];
    };
    for (int64_t slot = t * routing.top_k; slot < (t + 1) * routing.top_k; ++slot) {
      const int32_t i = routing.ids[slot], g = routing.group_of[i];
      const Values hidden = gated(layer.layer, apply(layer, 0, i, g, m, row), apply(layer, 1, i, g, m, row));
      add(apply(layer, 2, i, g, n, hidden), routing.weights[slot]);
    }
    if (layer.layer.shared_expert) add(shared_output(layer, row), 1);
  }
  return y;
}

}  // namespace molae::test
