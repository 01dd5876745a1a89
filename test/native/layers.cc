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
    if (options_.nested_bases && context_.chance(0.5)) swap_gate_and_up();
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
      const bool nested = index == 1 && options_.nested_bases;
      const int64_t most = nested ? result_.ranks[0][g] : std::min(out, in);
      const int64_t rank = reuse ? result_.ranks[0][g] : unit * context_.integer(1, most / unit);
      result_.ranks[index].push_back(rank);
      if (reuse) {
        op.shared.push_back(result_.layer.gate.shared[g]);
        result_.shared[1][g] = result_.shared[0][g];
      } else if (nested) {
        op.shared.push_back(result_.layer.gate.shared[g].row_range(0, rank));
        const Values& rows = result_.shared[0][g];
        result_.shared[1][g].assign(rows.begin(), rows.begin() + rank * in);
      } else {
        op.shared.push_back(matrix(down ? out : rank, down ? rank : in, result_.shared[index][g]));
      }
      for (const int32_t i : groups[g]) op.per_expert[i] = matrix(down ? rank : out, down ? in : rank, values[i]);
    }
  }

  void swap_gate_and_up() {
    std::swap(result_.layer.gate, result_.layer.up);
    std::swap(result_.per_expert[0], result_.per_expert[1]);
    std::swap(result_.shared[0], result_.shared[1]);
    std::swap(result_.ranks[0], result_.ranks[1]);
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

// What is computed with: values, or the squares of the sizes that values and their rounding errors have when signs are
// random. A product of matrices of squares has the squares of its elements' sizes.
struct Arithmetic {
  Values (*of)(Values);
  double (*activate)(Activation, double);
  bool gates_shared_expert;
};

double activate_square(Activation activation, double square) {
  return std::pow(activate<double>(activation, std::sqrt(square)), 2);
}

const Arithmetic kPlain{[](Values values) { return values; }, activate<double>, true};
const Arithmetic kSquares{squared, activate_square, false};

class Reference {
 public:
  Reference(RandomLayer layer, const Arithmetic& arithmetic) : layer_(std::move(layer)), arithmetic_(arithmetic) {
    const auto convert = [&](auto& matrices) {
      for (Values& values : matrices) values = arithmetic_.of(std::move(values));
    };
    for (auto& matrices : layer_.per_expert) convert(matrices);
    for (auto& matrices : layer_.shared) convert(matrices);
    convert(layer_.shared_expert);
  }

  Values forward(const Values& x, const RandomRouting& routing) const {
    const int64_t n = layer_.layer.hidden_size, m = layer_.layer.intermediate_size;
    const Values inputs = arithmetic_.of(x);
    const Values weights = arithmetic_.of({routing.weights.begin(), routing.weights.end()});
    Values y(routing.tokens * n, 0);
    for (int64_t t = 0; t < routing.tokens; ++t) {
      const Values row(inputs.begin() + t * n, inputs.begin() + (t + 1) * n);
      const auto add = [&](const Values& part, double weight) {
        for (int64_t j = 0; j < n; ++j) y[t * n + j] += weight * part[j];
      };
      for (int64_t slot = t * routing.top_k; slot < (t + 1) * routing.top_k; ++slot) {
        const int32_t i = routing.ids[slot], g = routing.group_of[i];
        const Values hidden = gated(apply(0, i, g, m, row), apply(1, i, g, m, row));
        add(apply(2, i, g, n, hidden), weights[slot]);
      }
      if (layer_.layer.shared_expert) add(shared_output(row), 1);
    }
    return y;
  }

 private:
  Values times(const Values& w, int64_t rows, const Values& x) const {
    return reference_product(w, false, x, true, rows, 1, static_cast<int64_t>(x.size()));
  }

  // W x of one expert, or A (B x), or for down B (A x).
  Values apply(int op, int32_t expert, int32_t group, int64_t rows, const Values& x) const {
    const Values& w = layer_.per_expert[op][expert];
    if (layer_.shared[op].empty()) return times(w, rows, x);
    const Values& b = layer_.shared[op][group];
    const int64_t rank = layer_.ranks[op][group];
    return op == 2 ? times(b, rows, times(w, rank, x)) : times(w, rows, times(b, rank, x));
  }

  Values gated(Values gate, const Values& up) const {
    for (size_t i = 0; i < gate.size(); ++i) gate[i] = arithmetic_.activate(layer_.layer.activation, gate[i]) * up[i];
    return gate;
  }

  Values shared_output(const Values& x) const {
    const int64_t width = layer_.layer.shared_expert->gate.rows();
    const Values hidden = gated(times(layer_.shared_expert[0], width, x), times(layer_.shared_expert[1], width, x));
    Values y = times(layer_.shared_expert[2], layer_.layer.hidden_size, hidden);
    if (layer_.gate_logit.empty() || !arithmetic_.gates_shared_expert) return y;
    const double scale = 1 / (1 + std::exp(-times(layer_.gate_logit, 1, x)[0]));
    for (double& value : y) value *= scale;
    return y;
  }

  RandomLayer layer_;
  const Arithmetic& arithmetic_;
};

}  // namespace

RandomLayer random_layer(Context& context, const LayerOptions& options,
                         const std::vector<std::vector<int32_t>>& groups) {
  return LayerBuilder(context, options, groups).build();
}

Values reference_forward(const RandomLayer& layer, const Values& x, const RandomRouting& routing) {
  return Reference(layer, kPlain).forward(x, routing);
}

Values forward_scale(const RandomLayer& layer, const Values& x, const RandomRouting& routing) {
  return roots(Reference(layer, kSquares).forward(x, routing));
}

}  // namespace molae::test
