#include "core/routing.h"

#include <cmath>

#include "core/error.h"

namespace molae {
namespace {

void check_ids(std::span<const int32_t> ids, int64_t tokens, int64_t top_k, int64_t num_experts, int64_t first_token) {
  for (int64_t t = 0; t < tokens; ++t) {
    const auto token_ids = ids.subspan(t * top_k, top_k);
    for (int64_t k = 0; k < top_k; ++k) {
      if (token_ids[k] < 0 || token_ids[k] >= num_experts) {
        fail(ErrorCode::InvalidArgument, "Routing sends token ", first_token + t, " to expert ", token_ids[k], " of ",
             num_experts);
      }
      for (int64_t j = 0; j < k; ++j) {
        if (token_ids[j] == token_ids[k]) {
          fail(ErrorCode::InvalidArgument, "Routing sends token ", first_token + t, " to expert ", token_ids[k],
               " twice");
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
  if (name == "sigmoid") return Scoring::Sigmoid;
  if (name == "sparsemixer") return Scoring::SparseMixer;
  fail(ErrorCode::InvalidArgument, "Expected softmax, sigmoid or sparsemixer for scoring but received ", quoted(name));
}

GroupScore parse_group_score(std::string_view name) {
  if (name == "max") return GroupScore::Max;
  if (name == "top2") return GroupScore::TopTwo;
  fail(ErrorCode::InvalidArgument, "Expected max or top2 for the score of a group but received ", quoted(name));
}

void check_router(const RouterSpec& spec, int64_t num_experts) {
  if (spec.top_k < 1 || spec.top_k > num_experts) {
    fail(ErrorCode::InvalidArgument, "Expected 1 to ", num_experts, " for topK but received ", spec.top_k);
  }
  if (!std::isfinite(spec.scaling)) {
    fail(ErrorCode::InvalidArgument, "Expected a finite number for scalingFactor but received ", spec.scaling);
  }
  if (!(spec.jitter >= 0)) {
    fail(ErrorCode::InvalidArgument, "Expected a number from 0 on for jitter but received ", spec.jitter);
  }
  const bool sparse_mixer = spec.scoring == Scoring::SparseMixer;
  if (sparse_mixer && (spec.num_groups != 0 || spec.correction_bias)) {
    fail(ErrorCode::InvalidArgument, "The sparsemixer chooses by logits: it has neither groups nor a correction bias");
  }
  if (spec.num_groups != 0) {
    if (spec.num_groups < 0 || num_experts % spec.num_groups != 0) {
      fail(ErrorCode::InvalidArgument, "Expected a divisor of the ", num_experts,
           " experts for numGroups but received ", spec.num_groups);
    }
    if (spec.chosen_groups < 1 || spec.chosen_groups > spec.num_groups) {
      fail(ErrorCode::InvalidArgument, "Expected 1 to ", spec.num_groups, " for chosenGroups but received ",
           spec.chosen_groups);
    }
    const int64_t eligible = spec.chosen_groups * (num_experts / spec.num_groups);
    if (spec.top_k > eligible) {
      fail(ErrorCode::InvalidArgument, "topK is ", spec.top_k, ", but the chosen groups have only ", eligible,
           " experts");
    }
  }
  if (spec.correction_bias) {
    if (spec.correction_bias.dtype() != DType::F32) {
      fail(ErrorCode::DTypeMismatch, "Expected f32 for correctionBias but received ",
           dtype_name(spec.correction_bias.dtype()));
    }
    if (spec.correction_bias.shape() != Shape{num_experts}) {
      fail(ErrorCode::ShapeMismatch, "Expected shape [", num_experts, "] for correctionBias but received ",
           shape_name(spec.correction_bias.shape()));
    }
  }
}

void SortedRouting::sort(std::span<const int32_t> ids, int64_t tokens, int64_t top_k, std::span<const int32_t> group_of,
                         int64_t num_groups, int64_t first_token) {
  const auto num_experts = static_cast<int64_t>(group_of.size());
  check_ids(ids, tokens, top_k, num_experts, first_token);
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
