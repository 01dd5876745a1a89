#include <map>

#include "core/error.h"
#include "native/cuda/sorted_routing.h"
#include "native/harness.h"

// The GPU's sort against SortedRouting, on the host.
namespace molae::test {
namespace {

using cuda::RoutingPlan;
using cuda::RowTile;
using cuda::TileMap;

// Every row of every problem is in one tile, and no tile is larger than it may be.
void check_tiles(const TileMap& map, const int32_t* begin, int32_t problems) {
  std::map<int32_t, int32_t> covered;  // problem -> row up to which it is covered
  bool ended = false;
  for (int32_t i = 0; i < map.capacity; ++i) {
    const RowTile& tile = map.tiles[i];
    if (tile.problem < 0) {
      ended = true;
      continue;
    }
    expect(!ended, "a tile follows an empty one");
    expect(tile.problem < problems, "tile of problem ", tile.problem);
    const auto [found, fresh] = covered.try_emplace(tile.problem, begin[tile.problem]);
    expect_equal(tile.begin, found->second, "first row of a tile");
    expect(tile.end > tile.begin && tile.end - tile.begin <= map.rows, "a tile of ", tile.end - tile.begin, " rows");
    found->second = tile.end;
  }
  for (int32_t p = 0; p < problems; ++p) {
    const int32_t up_to = covered.count(p) ? covered[p] : begin[p];
    expect_equal(up_to, begin[p + 1], "rows covered of problem ", p);
  }
}

void compare(const Sorted& sorted, const RandomRouting& routing) {
  const RoutingPlan& plan = sorted.plan;
  SortedRouting wanted;
  wanted.sort(routing.ids, routing.tokens, routing.top_k, routing.group_of, plan.groups, 0);
  if (routing.tokens == 0) return;
  for (int32_t i = 0; i <= plan.experts; ++i) {
    expect_equal(plan.expert_begin[i], wanted.expert_begin[i], "expert_begin ", i);
  }
  for (int32_t g = 0; g <= plan.groups; ++g)
    expect_equal(plan.group_begin[g], wanted.group_begin[g], "group_begin ", g);
  const int64_t latent_rows = wanted.group_begin[plan.groups];
  expect(latent_rows <= sorted.latent_bound, "more latent rows than the bound");
  for (int64_t l = 0; l < latent_rows; ++l)
    expect_equal(plan.latent_token[l], wanted.latent_token[l], "latent_token ", l);
  for (int64_t slot = 0; slot < routing.tokens * routing.top_k; ++slot) {
    const int64_t row = wanted.row_of_slot[slot];
    const int32_t group = routing.group_of[routing.ids[slot]];
    expect_equal(plan.row_of_slot[slot], row, "row_of_slot ", slot);
    expect_equal(plan.row_token[row], wanted.row_token[row], "row_token ", row);
    expect_equal(plan.row_latent[row], wanted.row_latent[row] + wanted.group_begin[group], "row_latent ", row);
    expect_equal(plan.slot_latent[slot], plan.row_latent[row], "slot_latent ", slot);
  }
  check_tiles(plan.expert_tiles, plan.expert_begin, plan.experts);
  check_tiles(plan.group_tiles, plan.group_begin, plan.groups);
  const int32_t tokens[] = {0, plan.tokens};
  check_tiles(plan.token_tiles, tokens, 1);
  expect_equal(sorted.error, cuda::kNoError, "error record");
}

MOLAE_TEST("logic: sort of random routings", Logic) {
  for (int round = 0; round < 1500; ++round) {
    const RandomRouting routing = random_routing(context);
    const int32_t rows[] = {4, 8, 16, 32, 64, 128};
    const auto some = [&] { return rows[context.integer(0, 5)]; };
    compare(Sorted(routing, {some(), some(), some()}), routing);
  }
}

MOLAE_TEST("logic: sort of large routings", Logic) {
  for (const auto& [tokens, experts, top_k] :
       {std::tuple{3000, 256, 8}, std::tuple{1000, 2048, 12}, std::tuple{4096, 1, 1}, std::tuple{2000, 600, 2}}) {
    const RandomRouting routing = random_routing(context, tokens, experts, top_k);
    compare(Sorted(routing, {64, 128, 128}), routing);
  }
}

MOLAE_TEST("logic: sort reports the first bad id", Logic) {
  for (int round = 0; round < 300; ++round) {
    RandomRouting routing = random_routing(context, context.integer(1, 150), context.integer(3, 20), 3);
    const int64_t first = context.integer(0, routing.tokens - 1);
    const int64_t second = context.integer(first, routing.tokens - 1);
    const bool twice = context.chance(0.5);
    const int32_t bad = context.chance(0.5) ? -7 : static_cast<int32_t>(routing.experts);
    routing.ids[second * 3] = -1;
    routing.ids[first * 3 + 2] = twice ? routing.ids[first * 3 + 1] : bad;
    const int64_t earlier = context.integer(0, 1 << 20);  // tokens of the call in chunks before this one
    const Sorted sorted(routing, {16, 64, 128}, earlier);
    const cuda::DecodedError error = cuda::decode_error(sorted.error);
    expect_equal(error.token, earlier + first, "token of the error");
    if (first != second) {
      expect(error.kind == (twice ? cuda::InputError::ExpertTwice : cuda::InputError::ExpertOutOfRange), "kind");
      expect_equal(error.expert, routing.ids[first * 3 + 2], "expert of the error");
    }
    // What is valid still has its row.
    int32_t rows = 0;
    for (size_t slot = 0; slot < routing.ids.size(); ++slot) {
      const bool valid = routing.ids[slot] >= 0 && routing.ids[slot] < routing.experts;
      const int32_t row = sorted.plan.row_of_slot[slot];
      expect_equal(row >= 0, valid, "row of slot ", slot);
      if (!valid) continue;
      ++rows;
      expect_equal(sorted.plan.row_token[row], static_cast<int32_t>(slot / 3), "token of slot ", slot);
    }
    expect_equal(sorted.plan.expert_begin[routing.experts], rows, "rows");
  }
}

MOLAE_TEST("logic: error records keep token, kind and expert", Logic) {
  for (const int32_t expert : {0, 1, -1, 12345, -12345, (1 << 29) - 1, -(1 << 29)}) {
    for (const int64_t token : {int64_t{0}, int64_t{7}, int64_t{1} << 30}) {
      for (const auto kind :
           {cuda::InputError::ExpertOutOfRange, cuda::InputError::ExpertTwice, cuda::InputError::LogitsNotFinite}) {
        const cuda::DecodedError error = cuda::decode_error(cuda::error_record(kind, token, expert));
        expect_equal(error.token, token, "token");
        expect(error.kind == kind, "kind");
        expect_equal(error.expert, expert, "expert");
      }
    }
  }
}

}  // namespace
}  // namespace molae::test
