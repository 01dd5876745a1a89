#include "cpu/layer/route.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/error.h"
#include "cpu/system/compute_pool.h"

namespace molae::cpu {
namespace {

// Tokens that one task routes.
constexpr int64_t kTokens = 64;

// Keeps a sum of scores that all underflowed from dividing 0 by 0; too small to matter beside any other (DeepSeek-V3).
constexpr float kSmallestSum = 1e-20f;

// Room for one token at a time.
struct Scratch {
  float* scores;   // [N] what becomes the weights
  float* choice;   // [N] what the experts are compared by
  float* groups;   // [num_groups]
  int32_t* order;  // [N]
};

// False where a logit is NaN or +infinity; -infinity masks an expert.
bool softmax(const float* logits, float* scores, int64_t count) {
  const float largest = *std::max_element(logits, logits + count);
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += scores[i] = std::exp(logits[i] - largest);
  if (!std::isfinite(sum)) return false;
  for (int64_t i = 0; i < count; ++i) scores[i] = static_cast<float>(scores[i] / sum);
  return true;
}

// As softmax(); each expert for itself.
bool sigmoid(const float* logits, float* scores, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (!(logits[i] < std::numeric_limits<float>::infinity())) return false;
    scores[i] = 1 / (1 + std::exp(-logits[i]));
  }
  return true;
}

// Puts the `top` first indices of [0, count) by descending value, ties to the lower index, at the front of `order`.
void partial_order(const float* values, int64_t count, int64_t top, int32_t* order) {
  std::iota(order, order + count, 0);
  std::partial_sort(order, order + top, order + count,
                    [&](int32_t a, int32_t b) { return values[a] > values[b] || (values[a] == values[b] && a < b); });
}

float group_score(const float* choice, int64_t size, GroupScore kind) {
  if (kind == GroupScore::Max || size == 1) return *std::max_element(choice, choice + size);
  float best = choice[0];
  float second = -std::numeric_limits<float>::infinity();
  for (int64_t i = 1; i < size; ++i) {
    second = std::max(second, std::min(best, choice[i]));
    best = std::max(best, choice[i]);
  }
  return best + second;
}

// Takes the experts outside the chosen groups out of the choice.
void limit_to_groups(const RouterSpec& spec, int64_t experts, const Scratch& scratch) {
  const int64_t size = experts / spec.num_groups;
  for (int64_t g = 0; g < spec.num_groups; ++g) {
    scratch.groups[g] = group_score(scratch.choice + g * size, size, spec.group_score);
  }
  partial_order(scratch.groups, spec.num_groups, spec.chosen_groups, scratch.order);
  std::sort(scratch.order + spec.chosen_groups, scratch.order + spec.num_groups);
  for (int64_t g = spec.chosen_groups; g < spec.num_groups; ++g) {
    std::fill_n(scratch.choice + scratch.order[g] * size, size, -std::numeric_limits<float>::infinity());
  }
}

// Fills ids and weights by scores. False where the logits are not finite.
bool choose_by_score(const float* logits, int64_t token, int64_t experts, const RouterSpec& spec,
                     const Scratch& scratch, int32_t* ids, float* weights) {
  const bool finite = spec.scoring == Scoring::Sigmoid ? sigmoid(logits, scratch.scores, experts)
                                                       : softmax(logits, scratch.scores, experts);
  if (!finite) return false;
  const float* compared = scratch.scores;
  if (spec.correction_bias || spec.num_groups != 0) {
    std::copy_n(scratch.scores, experts, scratch.choice);
    compared = scratch.choice;
  }
  if (spec.correction_bias) {
    const float* bias = spec.correction_bias.as<const float>();
    for (int64_t i = 0; i < experts; ++i) {
      scratch.choice[i] += bias[i];
      if (!std::isfinite(scratch.choice[i])) {
        fail(ErrorCode::NonFinite, "correctionBias has NaN or infinity at ", i, " (token ", token, ")");
      }
    }
  }
  if (spec.num_groups != 0) limit_to_groups(spec, experts, scratch);
  partial_order(compared, experts, spec.top_k, scratch.order);
  for (int64_t k = 0; k < spec.top_k; ++k) {
    ids[k] = scratch.order[k];
    weights[k] = scratch.scores[ids[k]];
  }
  return true;
}

// The same by SparseMixer, in the arithmetic of transformers' `sparsemixer`, so that the same logits come near.
bool choose_by_sparse_mixer(const float* logits, int64_t experts, const RouterSpec& spec, const Scratch& scratch,
                            int32_t* ids, float* weights) {
  constexpr float kTaken = -std::numeric_limits<float>::infinity();
  float* left = scratch.choice;
  for (int64_t i = 0; i < experts; ++i) {
    if (!(logits[i] < std::numeric_limits<float>::infinity())) return false;
    left[i] = logits[i];
  }
  for (int64_t k = 0; k < spec.top_k; ++k) {
    const int64_t best = std::max_element(left, left + experts) - left;
    const float largest = left[best];
    if (largest == kTaken) return false;  // every other expert is masked: there is nothing to share with
    double sum = 0;
    for (int64_t i = 0; i < experts; ++i) {
      const bool far = (largest - logits[i]) / std::max(std::abs(logits[i]), largest) > 2 * spec.jitter;
      if (!far && left[i] != kTaken) sum += std::exp(left[i] - largest);
    }
    ids[k] = static_cast<int32_t>(best);
    weights[k] = static_cast<float>(1 / sum);
    left[best] = kTaken;
  }
  return true;
}

void route_token(int64_t token, const float* logits, int64_t experts, const RouterSpec& spec, const Scratch& scratch,
                 int32_t* ids, float* weights) {
  const bool finite = spec.scoring == Scoring::SparseMixer
                          ? choose_by_sparse_mixer(logits, experts, spec, scratch, ids, weights)
                          : choose_by_score(logits, token, experts, spec, scratch, ids, weights);
  if (!finite) fail(ErrorCode::NonFinite, "The router logits of token ", token, " have NaN or infinity");
  if (spec.renormalize) {
    float sum = kSmallestSum;
    for (int64_t k = 0; k < spec.top_k; ++k) sum += weights[k];
    for (int64_t k = 0; k < spec.top_k; ++k) weights[k] /= sum;
  }
  if (spec.scaling == 1) return;
  for (int64_t k = 0; k < spec.top_k; ++k) weights[k] *= spec.scaling;
}

}  // namespace

void route(Context context, const Tensor& logits, const RouterSpec& spec, const Routing& routing) {
  const int64_t tokens = logits.rows();
  const int64_t experts = logits.cols();
  // Groups are at most as many as experts.
  float* floats = context.workspace.get<float>(kScratch, 3 * experts * context.threads);
  int32_t* order = context.workspace.get<int32_t>(kIntegers, experts * context.threads);
  ComputePool::instance().for_ranges(
      context.threads, tokens, kTokens, [&](int64_t begin, int64_t end, int participant) {
        float* own = floats + 3 * participant * experts;
        const Scratch scratch{own, own + experts, own + 2 * experts, order + participant * experts};
        for (int64_t t = begin; t < end; ++t) {
          route_token(t, logits.as<const float>() + t * experts, experts, spec, scratch,
                      routing.ids.as<int32_t>() + t * spec.top_k, routing.weights.as<float>() + t * spec.top_k);
        }
      });
}

}  // namespace molae::cpu
