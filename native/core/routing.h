#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "core/tensor.h"

namespace molae {

// Which experts every token goes to, and how much each of them counts.
struct Routing {
  Tensor ids;      // i32 [T, K]
  Tensor weights;  // f32 [T, K]
};

enum class Scoring : uint8_t { Softmax };

Scoring parse_scoring(std::string_view name);

// How router logits become ids and weights: score all experts, take the topK best (the lower index on ties),
// and, if asked, divide their scores by their sum.
struct RouterSpec {
  Scoring scoring = Scoring::Softmax;
  int64_t top_k = 1;
  bool renormalize = false;
};

// The (token, slot) pairs of a routing in the order in which grouped kernels want them.
//
// Row: one (token, expert) pair; rows are sorted by (expert, token).
// Latent row: one distinct (token, group) pair; latent rows are sorted by (group, token).
// All members keep their capacity between calls, so that a steady state allocates nothing.
class SortedRouting {
 public:
  // group_of[i] is the group of expert i, num_groups their number. Throws InvalidArgument for an id out of range
  // and for an expert that one token names twice.
  void sort(std::span<const int32_t> ids, int64_t tokens, int64_t top_k, std::span<const int32_t> group_of,
            int64_t num_groups);

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
