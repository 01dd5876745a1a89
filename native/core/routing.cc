#include "core/routing.h"

#include "core/error.h"

namespace molae {
namespace {

void check_ids(std::span<const int32_t> ids, int64_t tokens, int64_t top_k, int64_t num_experts) {
  for (int64_t t = 0; t < tokens; ++t) {
    const auto token_ids = ids.subspan(t * top_k, top_k);
    for (int64_t k = 0; k < top_k; ++k) {
      if (token_ids[k] < 0 || token_ids[k] >= num_experts) {
        fail(ErrorCode::InvalidArgument, "Routing sends token ", t, " to expert ", token_ids[k], " of ", num_experts);
      }
      for (int64_t j = 0; j < k; ++j) {
        if (token_ids[j] == token_ids[k]) {
          fail(ErrorCode::InvalidArgument, "Routing sends token ", t, " to expert ", token_ids[k], " twice");
        }
      }
    }
  }
}

// Counts in [1, n] become begins in [0, n].
void prefix_sum(std::vector<int64_t>& counts) {
  for (size_t i = 1; i < counts.size(); ++i) counts[i] += counts[i - 1];
}

}  // namespace

Scoring parse_scoring(std::string_view name) {
  if (name == "softmax") return Scoring::Softmax;
  fail(ErrorCode::InvalidArgument, "Expected softmax for scoring but received \"", name, "\"");
}

void SortedRouting::sort(std::span<const int32_t> ids, int64_t tokens, int64_t top_k, std::span<const int32_t> group_of,
                         int64_t num_groups) {
  const auto num_experts = static_cast<int64_t>(group_of.size());
  check_ids(ids, tokens, top_k, num_experts);
  const int64_t pairs = tokens * top_k;

  expert_begin.assign(num_experts + 1, 0);
  group_begin.assign(num_groups + 1, 0);
  group_stamp_.assign(num_groups, -1);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t k = 0; k < top_k; ++k) {
      const int32_t expert = ids[t * top_k + k];
      const int32_t group = group_of[expert];
      ++expert_begin[expert + 1];
      if (group_stamp_[group] != t) {
        group_stamp_[group] = t;
        ++group_begin[group + 1];
      }
    }
  }
  prefix_sum(expert_begin);
  prefix_sum(group_begin);

  row_token.resize(pairs);
  row_latent.resize(pairs);
  row_of_slot.resize(pairs);
  latent_token.resize(group_begin[num_groups]);
  expert_fill_.assign(expert_begin.begin(), expert_begin.end() - 1);
  group_fill_.assign(group_begin.begin(), group_begin.end() - 1);
  group_stamp_.assign(num_groups, -1);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t k = 0; k < top_k; ++k) {
      const int64_t slot = t * top_k + k;
      const int32_t expert = ids[slot];
      const int32_t group = group_of[expert];
      if (group_stamp_[group] != t) {
        group_stamp_[group] = t;
        latent_token[group_fill_[group]++] = static_cast<int32_t>(t);
      }
      const int64_t row = expert_fill_[expert]++;
      row_token[row] = static_cast<int32_t>(t);
      row_latent[row] = static_cast<int32_t>(group_fill_[group] - 1 - group_begin[group]);
      row_of_slot[slot] = row;
    }
  }
}

}  // namespace molae
