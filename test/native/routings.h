#pragma once

#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

#include "native/harness.h"

// Random routings of every kind that has broken a sort before: uniform, skewed, few experts in use, one that takes all,
// and Zipf's.
namespace molae::test {

struct RandomRouting {
  int64_t tokens, top_k, experts;
  std::vector<int32_t> ids;    // [tokens, top_k]
  std::vector<float> weights;  // [tokens, top_k]
  std::vector<std::vector<int32_t>> groups;
  std::vector<int32_t> group_of;  // [experts]
};

// Experts in the order in which one is drawn after the other, expert i 1 / (i + 1) times as likely as the first.
inline void draw_by_zipf(Context& context, std::vector<int32_t>& order) {
  std::vector<double> arrival(order.size());  // the first of exponential clocks at these rates
  for (size_t i = 0; i < order.size(); ++i) {
    arrival[i] = std::exponential_distribution<double>(1 / (static_cast<double>(i) + 1))(context.random);
  }
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return arrival[a] < arrival[b]; });
}

inline void make_groups(Context& context, RandomRouting& routing) {
  const int64_t count = context.integer(1, routing.experts);
  std::vector<int32_t> order(routing.experts);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), context.random);
  routing.groups.assign(count, {});
  routing.group_of.assign(routing.experts, 0);
  for (int64_t i = 0; i < routing.experts; ++i) {  // no group is empty, their sizes differ
    const int64_t group = i < count ? i : context.integer(0, count - 1);
    routing.groups[group].push_back(order[i]);
    routing.group_of[order[i]] = static_cast<int32_t>(group);
  }
}

inline RandomRouting random_routing(Context& context, int64_t tokens, int64_t experts, int64_t top_k) {
  RandomRouting routing{tokens, top_k, experts, {}, {}, {}, {}};
  make_groups(context, routing);
  const int64_t kind = context.integer(0, 4);
  const int64_t used = kind == 1 ? context.integer(top_k, experts) : experts;  // the others stay empty
  std::vector<int32_t> order(used);
  std::iota(order.begin(), order.end(), 0);
  for (int64_t t = 0; t < tokens; ++t) {
    std::shuffle(order.begin(), order.end(), context.random);
    if (kind == 2) std::swap(order[0], *std::find(order.begin(), order.end(), 0));  // one takes all
    if (kind == 3) std::sort(order.begin(), order.begin() + std::min<int64_t>(used, top_k + 2));
    if (kind == 4) draw_by_zipf(context, order);
    for (int64_t k = 0; k < top_k; ++k) {
      routing.ids.push_back(order[k]);
      routing.weights.push_back(static_cast<float>(context.normal()));
    }
  }
  return routing;
}

inline RandomRouting random_routing(Context& context, int64_t max_tokens = 200, int64_t max_experts = 70) {
  const int64_t experts = context.integer(1, max_experts);
  const int64_t top_k = context.integer(1, std::min<int64_t>(experts, 9));
  const int64_t sizes[] = {0, 1, 2, 63, 64, 65, 128, context.integer(0, max_tokens), context.integer(0, max_tokens)};
  return random_routing(context, std::min(max_tokens, sizes[context.integer(0, 8)]), experts, top_k);
}

}  // namespace molae::test
