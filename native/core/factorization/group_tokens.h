#pragma once

#include <cstdint>
#include <vector>

#include "core/backend.h"

namespace molae {

// Some tokens of an expert.
struct RoutedTokens {
  Tensor rows;     // i32 [t], of the layer's inputs
  Tensor weights;  // f32 [t], of the routing

  int64_t count() const { return rows.rows(); }
  RoutedTokens range(int64_t begin, int64_t end) const {
    return {rows.row_range(begin, end), weights.row_range(begin, end)};
  }
};

// The tokens that reach an expert of a group.
struct ExpertTokens {
  RoutedTokens all, sample;  // a sample of a few hundred, at even distances
  Tensor group_rows;         // i32 [t]: all among those of the group
};

struct GroupTokens {
  std::vector<ExpertTokens> experts;
  int64_t distinct = 0;  // tokens of the group, each counted once
  int64_t total = 0;     // of all its experts together
};

// What a routing sends to the experts of a group, which are named by their numbers in it. Throws InvalidArgument for a
// negative number and for one that is there twice.
GroupTokens group_tokens(Backend& backend, const Routing& routing, const std::vector<int32_t>& experts);

}  // namespace molae
