#include "cuda/logic/router.h"

#include <cmath>
#include <limits>

#include "core/error.h"
#include "core/tensor/half.h"
#include "cuda/logic/host_block.h"
#include "native/tensors.h"

// The GPU's router and number formats against the CPU's, on the host.
namespace molae::test {
namespace {

struct Routed {
  std::vector<int32_t> ids;
  std::vector<float> weights;
  unsigned long long error = cuda::kNoError;
};

Routed route_on_host(const std::vector<float>& logits, int64_t tokens, const RouterSpec& spec) {
  const auto experts = static_cast<int32_t>(tokens == 0 ? 1 : logits.size() / tokens);
  Routed routed{std::vector<int32_t>(tokens * spec.top_k, -9), std::vector<float>(tokens * spec.top_k, NAN),
                cuda::kNoError};
  const cuda::RouterArgs args =
      cuda::router_args(logits.data(), experts, spec, routed.ids.data(), routed.weights.data(), &routed.error);
  cuda::RouterShared shared;
  for (int64_t t = 0; t < tokens; ++t) {
    std::vector<float> scratch(cuda::router_scratch_floats(experts, args.num_groups), NAN);
    cuda::route_token(cuda::HostBlock(static_cast<int>(t), cuda::kRouterThreads), args, shared, scratch.data());
  }
  return routed;
}

std::vector<float> random_logits(Context& context, int64_t count) {
  std::vector<float> logits(count);
  const int64_t kind = context.integer(0, 2);
  for (float& logit : logits) {
    logit = static_cast<float>(3 * context.normal());
    if (kind == 1) logit = std::round(logit);                                               // many ties
    if (kind == 2 && context.chance(0.3)) logit = -std::numeric_limits<float>::infinity();  // masked experts
  }
  return logits;
}

// A router of any kind; its bias is a tensor of the context's device.
RouterSpec random_spec(Context& context, int64_t experts) {
  RouterSpec spec;
  spec.scoring = static_cast<Scoring>(context.integer(0, 2));
  spec.renormalize = context.chance(0.5);
  spec.scaling = context.chance(0.5) ? 1.0f : 2.5f;
  spec.jitter = context.chance(0.5) ? 0.01f : 0.3f;
  int64_t eligible = experts;
  if (spec.scoring != Scoring::SparseMixer && context.chance(0.5)) {
    do {
      spec.num_groups = context.integer(1, experts);
    } while (experts % spec.num_groups != 0);
    spec.chosen_groups = context.integer(1, spec.num_groups);
    spec.group_score = context.chance(0.5) ? GroupScore::Max : GroupScore::TopTwo;
    eligible = spec.chosen_groups * (experts / spec.num_groups);
  }
  if (spec.scoring != Scoring::SparseMixer && context.chance(0.4)) {
    Values bias = random_values(context, experts, 0.1);
    spec.correction_bias = make_tensor(context, DType::F32, {experts}, bias);
  }
  spec.top_k = context.integer(1, std::min<int64_t>(eligible, 12));
  return spec;
}

MOLAE_TEST("logic: router against the CPU", Logic) {
  for (int round = 0; round < 1500; ++round) {
    const int64_t tokens = context.integer(1, 12), experts = context.integer(1, 150);
    const RouterSpec spec = random_spec(context, experts);
    std::vector<float> logits = random_logits(context, tokens * experts);
    if (spec.scoring == Scoring::SparseMixer) {  // needs as many experts as it chooses
      for (float& logit : logits) logit = std::max(logit, -20.0f);
    }
    for (int64_t t = 0; t < tokens; ++t)
      logits[t * experts + context.integer(0, experts - 1)] = 0.5f;  // not all masked
    const Routed routed = route_on_host(logits, tokens, spec);

    Tensor device_logits = empty(context.backend, DType::F32, {tokens, experts});
    context.backend.upload(logits.data(), device_logits);
    const Routing wanted{empty(context.backend, DType::I32, {tokens, spec.top_k}),
                         empty(context.backend, DType::F32, {tokens, spec.top_k})};
    context.backend.route(device_logits, spec, wanted);
    const auto ids = read_ints(context.backend, wanted.ids);
    const auto weights = read(context.backend, wanted.weights);
    for (size_t i = 0; i < ids.size(); ++i) {
      expect_equal(routed.ids[i], ids[i], "id of slot ", i);
      expect(std::abs(routed.weights[i] - weights[i]) <= 1e-6 * (1 + std::abs(weights[i])), "weight of slot ", i);
    }
    expect_equal(routed.error, cuda::kNoError, "error record");
  }
}

MOLAE_TEST("logic: router reports NaN and infinity and stays in range", Logic) {
  for (int round = 0; round < 6; ++round) {
    const float bad = round % 2 ? std::numeric_limits<float>::quiet_NaN() : std::numeric_limits<float>::infinity();
    RouterSpec spec = plain_spec(5, true);
    spec.scoring = static_cast<Scoring>(round / 2);
    std::vector<float> logits = random_logits(context, 10 * 40);
    logits[4 * 40 + 17] = bad;
    for (int64_t t = 0; t < 10; ++t) logits[t * 40] = 1;
    const Routed routed = route_on_host(logits, 10, spec);
    const cuda::DecodedError error = cuda::decode_error(routed.error);
    expect(error.kind == cuda::InputError::LogitsNotFinite, "kind");
    expect_equal(error.token, 4, "token");
    for (const int32_t id : routed.ids) expect(id >= 0 && id < 40, "id ", id);
  }
}

MOLAE_TEST("logic: router reports a bad bias and stays in range", Logic) {
  RouterSpec spec = plain_spec(3, false);
  Values bias(9, NAN);
  spec.correction_bias = make_tensor(context, DType::F32, {9}, bias);
  const std::vector<float> logits(2 * 9, 1.0f);
  const Routed routed = route_on_host(logits, 2, spec);
  const cuda::DecodedError error = cuda::decode_error(routed.error);
  expect(error.kind == cuda::InputError::BiasNotFinite, "kind");
  expect_equal(error.token, 0, "token");
  expect_equal(error.expert, 0, "expert");
  expect(routed.ids == std::vector<int32_t>{0, 1, 2, 0, 1, 2}, "ids");
}

MOLAE_TEST("logic: half conversions have the CPU's bits", Logic) {
  for (uint32_t h = 0; h < 0x10000; ++h) {
    const auto bits = static_cast<uint16_t>(h);
    expect_equal(cuda::bits_as<uint32_t>(cuda::to_float(cuda::F16{bits})), std::bit_cast<uint32_t>(f16_to_f32(bits)),
                 "f16 ", h);
    expect_equal(cuda::bits_as<uint32_t>(cuda::to_float(cuda::BF16{bits})), std::bit_cast<uint32_t>(bf16_to_f32(bits)),
                 "bf16 ", h);
  }
  for (int round = 0; round < 200000; ++round) {
    const auto value = std::bit_cast<float>(static_cast<uint32_t>(context.random()));
    expect_equal(cuda::FromFloat<cuda::F16>::of(value).bits, f32_to_f16(value), "to f16 ", value);
    expect_equal(cuda::FromFloat<cuda::BF16>::of(value).bits, f32_to_bf16(value), "to bf16 ", value);
  }
}

MOLAE_TEST("logic: activations are the CPU's", Logic) {
  for (const auto activation : {Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu2}) {
    for (int round = 0; round < 2000; ++round) {
      const double x = 5 * context.normal();
      const double wanted = activate(activation, x);
      expect(std::abs(cuda::activated(activation, x) - wanted) <= 1e-14 * (1 + std::abs(wanted)), "f64 at ", x);
      const float narrow = cuda::activated(activation, static_cast<float>(x));
      expect(std::abs(narrow - wanted) <= 2e-6 * (1 + std::abs(wanted)), "f32 at ", x);
    }
    const float nan = cuda::activated(activation, std::numeric_limits<float>::quiet_NaN());
    expect(std::isnan(nan), "NaN went in, ", nan, " came out of activation ", static_cast<int>(activation));
  }
}

}  // namespace
}  // namespace molae::test
