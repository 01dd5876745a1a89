#include "cpu/route.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/error.h"
#include "cpu/compute_pool.h"

namespace molae::cpu {
namespace {

// Tokens that one task routes.
constexpr int64_t kTokens = 64;

// False where a logit is NaN or +infinity; -infinity masks an expert.
bool softmax(const float* logits, float* scores, int64_t count) {
  const float largest = *std::max_element(logits, logits + count);
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += scores[i] = std::exp(logits[i] - largest);
  if (!std::isfinite(sum)) return false;
  for (int64_t i = 0; i < count; ++i) scores[i] = static_cast<float>(scores[i] / sum);
  return true;
}

void route_token(int64_t token, const float* logits, int64_t experts, const RouterSpec& spec, float* scores,
                 int32_t* order, int32_t* ids, float* weights) {
  if (!softmax(logits, scores, experts)) {
    fail(ErrorCode::NonFinite, "The router logits of token ", token, " have NaN or infinity");
  }
  std::iota(order, order + experts, 0);
  std::partial_sort(order, order + spec.top_k, order + experts,
                    [&](int32_t a, int32_t b) { return scores[a] > scores[b] || (scores[a] == scores[b] && a < b); });
  float sum = 0;
  for (int64_t k = 0; k < spec.top_k; ++k) {
    ids[k] = order[k];
    sum += weights[k] = scores[order[k]];
  }
  if (!spec.renormalize) return;
  for (int64_t k = 0; k < spec.top_k; ++k) weights[k] /= sum;
}

}  // namespace

void route(Context context, const Tensor& logits, const RouterSpec& spec, const Routing& routing) {
  const int64_t tokens = logits.rows();
  const int64_t experts = logits.cols();
  float* scores = context.workspace.get<float>(kScratch, experts * context.threads);
  int32_t* order = context.workspace.get<int32_t>(kIntegers, experts * context.threads);
  const int64_t tasks = (tokens + kTokens - 1) / kTokens;
  ComputePool::instance().parallel_for(context.threads, tasks, [&](int64_t task, int participant) {
    for (int64_t t = task * kTokens; t < std::min(tokens, (task + 1) * kTokens); ++t) {
      route_token(t, logits.as<const float>() + t * experts, experts, spec, scores + participant * experts,
                  order + participant * experts, routing.ids.as<int32_t>() + t * spec.top_k,
                  routing.weights.as<float>() + t * spec.top_k);
    }
  });
}

}  // namespace molae::cpu
