#include <limits>

#include "core/checks.h"
#include "core/error.h"
#include "native/layers.h"

// The router and the forward pass of layers, on the device.
namespace molae::test {
namespace {

Values softmax(const Values& logits) {
  Values scores(logits.size());
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (size_t i = 0; i < logits.size(); ++i) sum += scores[i] = std::exp(logits[i] - largest);
  for (double& score : scores) score /= sum;
  return scores;
}

void check_route(Context& context, int64_t tokens, int64_t experts, int64_t top_k, bool renormalize, bool ties) {
  Values logits = random_values(context, tokens * experts, 2);
  if (ties) {
    for (double& logit : logits) logit = std::round(logit);
  }
  const Tensor tensor = make_tensor(context, DType::F32, {tokens, experts}, logits);
  const Routing routing{poisoned(context, DType::I32, {tokens, top_k}), poisoned(context, DType::F32, {tokens, top_k})};
  context.backend.route(tensor, plain_spec(top_k, renormalize), routing);
  const auto ids = read_ints(context.backend, routing.ids);
  const Values weights = read(context.backend, routing.weights);
  for (int64_t t = 0; t < tokens; ++t) {
    const Values row(logits.begin() + t * experts, logits.begin() + (t + 1) * experts);
    const Values scores = softmax(row);
    std::vector<int32_t> order(experts);
    for (int64_t i = 0; i < experts; ++i) order[i] = static_cast<int32_t>(i);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return row[a] > row[b]; });
    double sum = 0;
    for (int64_t k = 0; k < top_k; ++k) sum += scores[order[k]];
    for (int64_t k = 0; k < top_k; ++k) {
      expect_equal(ids[t * top_k + k], order[k], "id ", k, " of token ", t);
      const double wanted = scores[order[k]] / (renormalize ? sum : 1);
      expect(std::abs(weights[t * top_k + k] - wanted) <= 1e-5 * wanted + 1e-9, "weight ", k, " of token ", t);
    }
  }
}

MOLAE_TEST("experts: route", Device) {
  for (const auto& [tokens, experts, top_k] :
       {std::tuple{0, 4, 2}, {1, 1, 1}, {7, 60, 4}, {100, 128, 8}, {33, 256, 8}, {5, 3, 3}, {3, 3000, 11}}) {
    for (const bool renormalize : {false, true})
      check_route(context, tokens, experts, top_k, renormalize, experts < 100);
  }
}

// DeepSeek-V3's router in plain loops: sigmoid scores, a bias for the choice, groups by their two best, scaling.
MOLAE_TEST("experts: route with groups and a bias", Device) {
  const int64_t tokens = 50, experts = 64, size = 8;
  RouterSpec spec = plain_spec(6, true);
  spec.scoring = Scoring::Sigmoid;
  spec.scaling = 2.5f;
  spec.num_groups = experts / size;
  spec.chosen_groups = 3;
  spec.group_score = GroupScore::TopTwo;
  Values bias = random_values(context, experts, 0.2), logits = random_values(context, tokens * experts);
  spec.correction_bias = make_tensor(context, DType::F32, {experts}, bias);
  const Tensor tensor = make_tensor(context, DType::F32, {tokens, experts}, logits);
  const Routing routing{poisoned(context, DType::I32, {tokens, 6}), poisoned(context, DType::F32, {tokens, 6})};
  context.backend.route(tensor, spec, routing);
  const auto ids = read_ints(context.backend, routing.ids);
  const Values weights = read(context.backend, routing.weights);
  for (int64_t t = 0; t < tokens; ++t) {
    Values scores(experts), choice(experts);
    for (int64_t i = 0; i < experts; ++i) {
      scores[i] = 1 / (1 + std::exp(-logits[t * experts + i]));
      choice[i] = scores[i] + bias[i];
    }
    std::vector<std::pair<double, int64_t>> groups;
    for (int64_t g = 0; g < spec.num_groups; ++g) {
      Values members(choice.begin() + g * size, choice.begin() + (g + 1) * size);
      std::sort(members.rbegin(), members.rend());
      groups.emplace_back(-(members[0] + members[1]), g);
    }
    std::sort(groups.begin(), groups.end());
    std::vector<std::pair<double, int32_t>> order;
    for (int64_t g = 0; g < spec.chosen_groups; ++g) {
      for (int64_t i = groups[g].second * size; i < (groups[g].second + 1) * size; ++i) {
        order.emplace_back(-choice[i], static_cast<int32_t>(i));
      }
    }
    std::sort(order.begin(), order.end());
    double sum = 0;
    for (int k = 0; k < 6; ++k) sum += scores[order[k].second];
    for (int k = 0; k < 6; ++k) {
      expect_equal(ids[t * 6 + k], order[k].second, "id ", k, " of token ", t);
      const double wanted = 2.5 * scores[order[k].second] / sum;
      expect(std::abs(weights[t * 6 + k] - wanted) <= 1e-5 * wanted, "weight ", k, " of token ", t);
    }
  }
}

MOLAE_TEST("experts: route reports NaN", Device) {
  Values logits = random_values(context, 5 * 9);
  logits[3 * 9 + 2] = NAN;
  const Tensor tensor = make_tensor(context, DType::F32, {5, 9}, logits);
  const Routing routing{poisoned(context, DType::I32, {5, 2}), poisoned(context, DType::F32, {5, 2})};
  expect_error(ErrorCode::NonFinite, "a NaN logit", [&] {
    context.backend.route(tensor, plain_spec(2, false), routing);
    context.backend.synchronize();
  });
  context.backend.synchronize();  // reported once
}

Routing upload(Context& context, const RandomRouting& routing) {
  Values weights(routing.weights.begin(), routing.weights.end());
  return {make_ints(context, {routing.tokens, routing.top_k}, routing.ids),
          make_tensor(context, DType::F32, {routing.tokens, routing.top_k}, weights)};
}

double layer_tolerance(const LayerOptions& options, DType x_dtype) {
  double relative = tolerance(x_dtype);
  for (const DType dtype : options.dtypes) relative = std::max(relative, tolerance(dtype));
  return relative;
}

// Twice the same, on poisoned outputs.
Values output_of(Context& context, LayerForward& forward, const Tensor& x, const Routing& routing) {
  const Tensor y = poisoned(context, x.dtype(), x.shape()), again = poisoned(context, x.dtype(), x.shape());
  forward.run(x, routing, y, Cancellation());
  forward.run(x, routing, again, Cancellation());
  Values values = read(context.backend, y);
  expect(read(context.backend, again) == values, "the same call gave another result");
  return values;
}

// The CPU packs layers without any weight that is f64 or in blocks.
bool is_packed(Context& context, const ExpertLayer& layer) {
  std::vector<Tensor> weights;
  for (const ExpertOperator* op : {&layer.gate, &layer.up, &layer.down}) {
    weights.insert(weights.end(), op->per_expert.begin(), op->per_expert.end());
    weights.insert(weights.end(), op->shared.begin(), op->shared.end());
  }
  if (const auto& shared = layer.shared_expert) {
    weights.insert(weights.end(), {shared->gate, shared->up, shared->down});
    if (shared->gate_logit) weights.push_back(*shared->gate_logit);
  }
  return context.backend.knows_blocks() && std::ranges::all_of(weights, [](const Tensor& weight) {
           return weight.dtype() == DType::F32 || is_half(weight.dtype());
         });
}

void check_forward_of(Context& context, const LayerOptions& options, const RandomRouting& routing, DType x_dtype) {
  const RandomLayer random = random_layer(context, options, routing.groups);
  Values x = random_values(context, routing.tokens * options.hidden_size);
  const Tensor input = make_tensor(context, x_dtype, {routing.tokens, options.hidden_size}, x);
  const Routing given = upload(context, routing);
  const Values wanted = reference_forward(random, x, routing);
  const Values scale = forward_scale(random, x, routing);
  const auto forward = context.backend.prepare(random.layer);
  expect_close(output_of(context, *forward, input, given), wanted, scale, layer_tolerance(options, x_dtype), "y");
  const auto packed = forward->packed(PackedInputs::F32, Cancellation());
  expect_equal(packed != nullptr, is_packed(context, random.layer), "whether weights were packed");
  if (!packed) return;
  expect_close(output_of(context, *packed, input, given), wanted, scale, layer_tolerance(options, x_dtype),
               "y with packed weights");
  expect(packed->packed(PackedInputs::F32, Cancellation()) == nullptr, "packed weights were packed again");
}

MOLAE_TEST("experts: forward of random layers", Device) {
  for (int round = 0; round < 50; ++round) {
    const RandomRouting routing = random_routing(context, 90, 20);
    LayerOptions options{};
    const int64_t unit = context.chance(0.6) ? 8 : 1;
    options.hidden_size = unit * context.integer(1, 200 / unit);
    options.intermediate_size = unit * context.integer(1, 150 / unit);
    options.experts = routing.experts;
    std::vector<std::vector<DType>> choices = {{DType::F32},  {DType::F64}, {DType::BF16},
                                               {DType::BF16}, {DType::F16}, {DType::F32, DType::BF16, DType::F16}};
    if (context.backend.knows_blocks()) {
      choices.insert(choices.end(), {{DType::Q8}, {DType::Q4}, {DType::Q8, DType::Q4, DType::BF16}});
    }
    options.dtypes = choices[context.integer(0, static_cast<int64_t>(choices.size()) - 1)];
    for (bool& latent : options.latent) latent = context.chance(0.7);
    options.shared_basis = options.latent[0] && options.latent[1] && context.chance(0.3);
    options.shared_size = context.chance(0.4) ? unit * context.integer(1, 100 / unit) : 0;
    options.shared_gate = context.chance(0.5);
    options.activation = static_cast<Activation>(context.integer(0, 3));
    const DType x_dtype = options.dtypes[0] == DType::F64 ? DType::F64 : kFloats[2 * context.integer(0, 1)];
    check_forward_of(context, options, routing, x_dtype);
  }
}

MOLAE_TEST("experts: bases that begin at one place need not be the same", Device) {
  for (int round = 0; round < 4; ++round) {
    const RandomRouting routing = random_routing(context, 12, 6, 2);
    LayerOptions options{48, 40, 6, {round % 2 == 0 ? DType::F32 : DType::BF16}};
    options.nested_bases = true;
    check_forward_of(context, options, routing, DType::F32);
  }
}

// All three tensor-core tiles, dense and latent, at sizes with whole and with ragged tiles.
MOLAE_TEST("experts: forward with few, some and many rows an expert", Device) {
  for (const int64_t tokens : {1, 16, 100, 400, 900}) {
    for (const bool latent : {true, false}) {
      for (const DType dtype : {DType::BF16, DType::F16, DType::F32}) {
        const RandomRouting routing = random_routing(context, tokens, 6, 2);
        LayerOptions options{};
        options.hidden_size = 136;
        options.intermediate_size = 88;
        options.experts = 6;
        options.dtypes = {dtype};
        for (bool& flag : options.latent) flag = latent;
        options.shared_size = 64;
        options.shared_gate = true;
        check_forward_of(context, options, routing, dtype);
      }
    }
  }
}

MOLAE_TEST("experts: a bad routing is an error, and the device works on", Device) {
  RandomRouting routing = random_routing(context, 20, 5, 2);
  LayerOptions options{24, 16, 5, {DType::F32}, {true, true, true}, false, 0, false, Activation::Silu};
  const RandomLayer random = random_layer(context, options, routing.groups);
  Values x = random_values(context, 20 * 24);
  const Tensor input = make_tensor(context, DType::F32, {20, 24}, x), y = poisoned(context, DType::F32, {20, 24});
  const auto forward = context.backend.prepare(random.layer);
  for (const int32_t bad : {5, -1, std::numeric_limits<int32_t>::max(), routing.ids[14]}) {
    RandomRouting broken = routing;
    broken.ids[15] = bad;
    const Routing given = upload(context, broken);
    expect_error(ErrorCode::InvalidArgument, "expert " + std::to_string(bad), [&] {
      forward->run(input, given, y, Cancellation());
      context.backend.synchronize();
    });
  }
  forward->run(input, upload(context, routing), y, Cancellation());
  expect_close(read(context.backend, y), reference_forward(random, x, routing), forward_scale(random, x, routing), 1e-5,
               "y");
}

// Not even of no tokens: sizes are computed from the length of a row.
MOLAE_TEST("experts: more experts a token than there are, are refused", Device) {
  const int64_t n = 8, experts = 3;
  const auto check = [&](int64_t tokens, int64_t top_k) {
    const Tensor x = empty(context.backend, DType::F32, {tokens, n}),
                 y = empty(context.backend, DType::F32, {tokens, n});
    const Routing routing{empty(context.backend, DType::I32, {tokens, top_k}),
                          empty(context.backend, DType::F32, {tokens, top_k})};
    check_forward(n, experts, x, routing, y, &context.backend);
  };
  for (const int64_t tokens : {0, 5}) {
    for (const int64_t top_k : {int64_t{0}, int64_t{1}, experts}) check(tokens, top_k);
    expect_error(ErrorCode::InvalidArgument, "4 of 3 experts", [&] { check(tokens, experts + 1); });
  }
  expect_error(ErrorCode::InvalidArgument, "2^53 of 3 experts", [&] { check(0, int64_t{1} << 53); });
}

MOLAE_TEST("experts: a cancelled forward stops", Device) {
  const RandomRouting routing = random_routing(context, 3, 2, 1);
  LayerOptions options{8, 8, 2, {DType::F32}, {false, false, false}, false, 0, false, Activation::Silu};
  const RandomLayer random = random_layer(context, options, routing.groups);
  const Tensor x = poisoned(context, DType::F32, {3, 8}), y = poisoned(context, DType::F32, {3, 8});
  const auto forward = context.backend.prepare(random.layer);
  Cancellation cancelled;
  cancelled.cancel();
  expect_error(ErrorCode::Aborted, "a cancelled call",
               [&] { forward->run(x, upload(context, routing), y, cancelled); });
}

MOLAE_TEST("experts: a shared expert without a width is refused", Device) {
  LayerOptions options{8, 6, 2, {DType::F32}, {false, false, false}, false, 4};
  ExpertLayer layer = random_layer(context, options, {}).layer;
  check_layer(layer, &context.backend);
  layer.shared_expert->gate = empty(context.backend, DType::F32, {0, 8});
  layer.shared_expert->up = empty(context.backend, DType::F32, {0, 8});
  layer.shared_expert->down = empty(context.backend, DType::F32, {8, 0});
  expect_error(ErrorCode::ShapeMismatch, "a width of 0", [&] { check_layer(layer, &context.backend); });
}

// The experts of groups are looked up, whether or not an operator has need of them.
MOLAE_TEST("experts: groups that are no partition are refused, of dense experts, too", Device) {
  LayerOptions options{8, 6, 4, {DType::F32}};
  for (const bool latent : {false, true}) {
    options.latent[0] = options.latent[1] = options.latent[2] = latent;
    const RandomLayer random = random_layer(context, options, {{0, 2}, {1, 3}});
    check_layer(random.layer, &context.backend);
    for (const std::vector<std::vector<int32_t>>& groups : {std::vector<std::vector<int32_t>>{{0, 2}, {1, 4}},
                                                            {{0, 2}, {1, -1}},
                                                            {{0, 2}, {1, 2}},
                                                            {{0, 2}, {1}},
                                                            {{0, 1, 2, 3}, {}}}) {
      ExpertLayer layer = random.layer;
      layer.groups = groups;
      expect_error(ErrorCode::InvalidArgument, latent ? "of latent experts" : "of dense experts",
                   [&] { check_layer(layer, &context.backend); });
    }
  }
}

}  // namespace
}  // namespace molae::test
