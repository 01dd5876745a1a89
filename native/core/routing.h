#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "core/tensor/tensor.h"

namespace molae {

// Which experts every token goes to, and how much each of them counts.
struct Routing {
  Tensor ids;      // i32 [T, K]
  Tensor weights;  // f32 [T, K]
};

// How logits become scores: softmax over all experts, the sigmoid of each, or SparseMixer (PhiMoE, arXiv 2409.12136):
// experts are chosen one after the other by their logits, and each one's score is its share in a softmax over those
// that come near it, the ones chosen before left out.
enum class Scoring : uint8_t { Softmax, Sigmoid, SparseMixer };

// What a group of experts counts for where whole groups are chosen before experts: its best score (DeepSeek-V2) or the
// sum of its two best (DeepSeek-V3).
enum class GroupScore : uint8_t { Max, TopTwo };

Scoring parse_scoring(std::string_view name);
GroupScore parse_group_score(std::string_view name);

// How router logits become ids and weights: score all experts, take the topK best (the lower index on ties), best
// first, and weigh each by its score.
struct RouterSpec {
  Scoring scoring = Scoring::Softmax;
  int64_t top_k = 1;
  bool renormalize = false;  // divide the chosen scores by their sum (plus 1e-20, as DeepSeek-V3 does)
  float scaling = 1;         // the last step: every weight times this
  // Group-limited routing: the experts lie in num_groups runs of equal length, and only those of the chosen_groups best
  // runs take part. 0 groups: no such limit. (Nothing to do with the groups that share a latent space.)
  int64_t num_groups = 0;
  int64_t chosen_groups = 0;
  GroupScore group_score = GroupScore::Max;
  // SparseMixer: a logit comes near the largest one left, M, where (M - logit) / max(|logit|, M) <= 2 jitter.
  float jitter = 0;
  // f32 [N], or none: added to the scores wherever they are compared, not to those that become weights.
  Tensor correction_bias;
};

// Throws InvalidArgument, ShapeMismatch or DTypeMismatch for fields that make no sense with this number of experts.
void check_router(const RouterSpec& spec, int64_t num_experts);

// The (token, slot) pairs of a routing in the order in which grouped kernels want them.
//
// Row: one (token, expert) pair; rows are sorted by (expert, token).
// Latent row: one distinct (token, group) pair; latent rows are sorted by (group, token).
// All members keep their capacity between calls, so that a steady state allocates nothing.
class SortedRouting {
 public:
  // group_of[i] is the group of expert i, num_groups their number. Throws InvalidArgument for an id out of range
  // and for an expert that one token names twice; first_token is what the first of the tokens is called then, which may
  // be a part of the caller's.
  void sort(std::span<const int32_t> ids, int64_t tokens, int64_t top_k, std::span<const int32_t> group_of,
            int64_t num_groups, int64_t first_token);

  std::vector<int64_t> expert_begin;  // [N + 1] rows of expert i: expert_begin[i] .. expert_begin[i + 1]
  std::vector<int32_t> row_token;     // [T K] token of a row
  std::vector<int32_t> row_latent;    // [T K] latent row of a row, within its group
  std::vector<int64_t> row_of_slot;   // [T K] row of the pair (token, slot)
  std::vector<int64_t> group_begin;   // [G + 1] latent rows of group g
  std::vector<int32_t> latent_token;  // [distinct] token of a latent row

 private:
  std::vector<int64_t> expert_fill_;
  std::vector<int64_t> group_fill_;
  std::vector<int64_t> group_stamp_;
};

}  // namespace molae
