#pragma once

#include <vector>

#include "native/cuda/host_runtime.h"
#include "native/routings.h"

namespace molae::test {

// Rows of a tile of experts, of groups and of tokens.
struct TileRows {
  int32_t experts, groups, tokens;
};

// A plan with arrays of exactly the sizes that the layer gives it.
struct Sorted {
  Sorted(const RandomRouting& routing, const TileRows& tile_rows, int64_t first_token = 0) {
    const int64_t pairs = routing.tokens * routing.top_k;
    const auto groups = static_cast<int64_t>(routing.groups.size());
    const int64_t chunks = cuda::ceil_div(routing.tokens, cuda::kSortTokens);
    latent_bound = cuda::latent_row_bound(routing.tokens, routing.top_k, groups);
    plan.ids = routing.ids.data();
    plan.group_of = routing.group_of.data();
    plan.tokens = static_cast<int32_t>(routing.tokens);
    plan.top_k = static_cast<int32_t>(routing.top_k);
    plan.experts = static_cast<int32_t>(routing.experts);
    plan.groups = static_cast<int32_t>(groups);
    plan.first_token = first_token;
    plan.chunk_experts = ints(chunks * routing.experts);
    plan.chunk_groups = ints(chunks * groups);
    plan.expert_begin = ints(routing.experts + 1);
    plan.group_begin = ints(groups + 1);
    plan.row_token = ints(pairs);
    plan.row_latent = ints(pairs);
    plan.row_of_slot = ints(pairs);
    plan.slot_group = ints(pairs);
    plan.slot_latent = ints(pairs);
    plan.latent_token = ints(latent_bound);
    plan.expert_tiles = tiles(pairs, routing.experts, tile_rows.experts);
    plan.group_tiles = tiles(latent_bound, groups, tile_rows.groups);
    plan.token_tiles = tiles(routing.tokens, 1, tile_rows.tokens);
    plan.error = &error;
    sort_on_host(plan);
  }

  int32_t* ints(int64_t count) { return memory.emplace_back(count * sizeof(int32_t)).as<int32_t>(); }
  cuda::TileMap tiles(int64_t rows, int64_t problems, int32_t height) {
    const int64_t capacity = cuda::tile_bound(rows, problems, height);
    return {memory.emplace_back(capacity * sizeof(cuda::RowTile)).as<cuda::RowTile>(), static_cast<int32_t>(capacity),
            height};
  }

  cuda::RoutingPlan plan{};
  int64_t latent_bound = 0;
  unsigned long long error = cuda::kNoError;
  std::vector<HostMemory> memory;
};

}  // namespace molae::test
