#pragma once

#include "cuda/logic/error_record.h"
#include "cuda/logic/routing_plan.h"

// The stable counting sort of a routing, in three kernels: count (a block a chunk of tokens), plan (one block),
// scatter (a block a chunk), or in one where there is one chunk. Threads own experts and groups and walk their chunk's
// slots in order: nothing depends on the order in which threads run, so the result is the same every time, and the same
// as SortedRouting's.
namespace molae::cuda {

struct Chunk {
  int32_t first_slot, last_slot;
};

MOLAE_HD Chunk chunk_of(const RoutingPlan& plan, int index) {
  const int32_t first = index * kSortTokens;
  const int32_t last = first + kSortTokens < plan.tokens ? first + kSortTokens : plan.tokens;
  return {first * plan.top_k, last * plan.top_k};
}

// The group of a slot if it is the first of its token in it. Reports ids that are out of range or given twice.
MOLAE_HD int32_t classify_slot(const RoutingPlan& plan, int32_t slot) {
  const int32_t id = plan.ids[slot];
  const int32_t token = slot / plan.top_k;
  if (id < 0 || id >= plan.experts) {
    report_error(plan.error, error_record(InputError::ExpertOutOfRange, plan.first_token + token, id));
    return kInvalidSlot;
  }
  const int32_t group = plan.group_of[id];
  bool first = true;
  for (int32_t earlier = token * plan.top_k; earlier < slot; ++earlier) {
    const int32_t other = plan.ids[earlier];
    if (other < 0 || other >= plan.experts) continue;
    if (other == id) report_error(plan.error, error_record(InputError::ExpertTwice, plan.first_token + token, id));
    if (plan.group_of[other] == group) first = false;
  }
  return first ? group : kLaterSlot;
}

MOLAE_HD int32_t count_equal(const int32_t* values, Chunk chunk, int32_t wanted) {
  int32_t count = 0;
  for (int32_t slot = chunk.first_slot; slot < chunk.last_slot; ++slot) count += values[slot] == wanted;
  return count;
}

template <class Block>
MOLAE_HD void count_chunk(const Block& block, const RoutingPlan& plan) {
  const Chunk chunk = chunk_of(plan, block.index());
  block.each_thread([&](int thread) {
    for (int32_t slot = chunk.first_slot + thread; slot < chunk.last_slot; slot += block.threads()) {
      plan.slot_group[slot] = classify_slot(plan, slot);
    }
  });
  block.each_thread([&](int thread) {
    const int64_t row = block.index();
    for (int32_t i = thread; i < plan.experts; i += block.threads()) {
      plan.chunk_experts[row * plan.experts + i] = count_equal(plan.ids, chunk, i);
    }
    for (int32_t g = thread; g < plan.groups; g += block.threads()) {
      plan.chunk_groups[row * plan.groups + g] = count_equal(plan.slot_group, chunk, g);
    }
  });
}

// Running sums of rows and of tiles, problem after problem.
struct Counts {
  int32_t rows, tiles;
};

struct PlanShared {
  Counts counts[2][kMaxExperts];
};

// chunk_counts [chunks, problems]: counts become how many there were in earlier chunks. Totals go to shared.counts[0].
template <class Block>
MOLAE_HD void scan_chunks(const Block& block, int32_t* chunk_counts, int32_t chunks, int32_t problems,
                          int32_t tile_rows, PlanShared& shared) {
  constexpr int kAtOnce = 8;  // read before the first is written, or every read would wait for the write before it
  block.each_thread([&](int thread) {
    for (int32_t p = thread; p < problems; p += block.threads()) {
      int32_t before = 0;
      for (int32_t first = 0; first < chunks; first += kAtOnce) {
        int32_t* const at = chunk_counts + static_cast<int64_t>(first) * problems + p;
        int32_t counts[kAtOnce];
        MOLAE_UNROLL
        for (int i = 0; i < kAtOnce; ++i) counts[i] = first + i < chunks ? at[static_cast<int64_t>(i) * problems] : 0;
        MOLAE_UNROLL
        for (int i = 0; i < kAtOnce; ++i) {
          if (first + i < chunks) at[static_cast<int64_t>(i) * problems] = before;
          before += counts[i];
        }
      }
      shared.counts[0][p] = {before, static_cast<int32_t>(ceil_div(before, tile_rows))};
    }
  });
}

// Inclusive sums over the problems, by doubling distances between two arrays. Returns the array they end up in.
template <class Block>
MOLAE_HD const Counts* scan_problems(const Block& block, int32_t problems, PlanShared& shared) {
  int from = 0;
  for (int32_t distance = 1; distance < problems; distance *= 2) {
    block.each_thread([&](int thread) {
      for (int32_t p = thread; p < problems; p += block.threads()) {
        Counts sum = shared.counts[from][p];
        if (p >= distance) {
          sum.rows += shared.counts[from][p - distance].rows;
          sum.tiles += shared.counts[from][p - distance].tiles;
        }
        shared.counts[1 - from][p] = sum;
      }
    });
    from = 1 - from;
  }
  return shared.counts[from];
}

// begin [problems + 1] and the tile map, from the inclusive sums. Tiles that are not needed say so.
template <class Block>
MOLAE_HD void write_problems(const Block& block, const Counts* sums, int32_t problems, int32_t* begin,
                             const TileMap& map) {
  block.each_thread([&](int thread) {
    if (thread == 0) begin[0] = 0;
    for (int32_t p = thread; p < problems; p += block.threads()) {
      const Counts before = p == 0 ? Counts{0, 0} : sums[p - 1];
      const int32_t end = sums[p].rows;
      begin[p + 1] = end;
      int32_t tile = before.tiles;
      for (int32_t row = before.rows; row < end; row += map.rows) {
        map.tiles[tile++] = {p, row, row + map.rows < end ? row + map.rows : end};
      }
    }
    for (int32_t tile = sums[problems - 1].tiles + thread; tile < map.capacity; tile += block.threads()) {
      map.tiles[tile] = {-1, 0, 0};
    }
  });
}

template <class Block>
MOLAE_HD void write_token_tiles(const Block& block, int32_t tokens, const TileMap& map) {
  block.each_thread([&](int thread) {
    for (int32_t tile = thread; tile < map.capacity; tile += block.threads()) {
      const int32_t begin = tile * map.rows;
      const int32_t end = begin + map.rows < tokens ? begin + map.rows : tokens;
      map.tiles[tile] = begin < end ? RowTile{0, begin, end} : RowTile{-1, 0, 0};
    }
  });
}

template <class Block>
MOLAE_HD void plan_rows(const Block& block, const RoutingPlan& plan, PlanShared& shared) {
  const auto chunks = static_cast<int32_t>(ceil_div(plan.tokens, kSortTokens));
  scan_chunks(block, plan.chunk_experts, chunks, plan.experts, plan.expert_tiles.rows, shared);
  write_problems(block, scan_problems(block, plan.experts, shared), plan.experts, plan.expert_begin, plan.expert_tiles);
  scan_chunks(block, plan.chunk_groups, chunks, plan.groups, plan.group_tiles.rows, shared);
  write_problems(block, scan_problems(block, plan.groups, shared), plan.groups, plan.group_begin, plan.group_tiles);
  write_token_tiles(block, plan.tokens, plan.token_tiles);
}

// A later slot has the latent row of the slot of its token that came first in its group.
MOLAE_HD int32_t first_slot_of_group(const RoutingPlan& plan, int32_t slot) {
  const int32_t group = plan.group_of[plan.ids[slot]];
  int32_t first = slot / plan.top_k * plan.top_k;
  while (plan.slot_group[first] != group) ++first;
  return first;
}

template <class Block>
MOLAE_HD void scatter_chunk(const Block& block, const RoutingPlan& plan) {
  const Chunk chunk = chunk_of(plan, block.index());
  const int64_t row = block.index();
  block.each_thread([&](int thread) {
    for (int32_t i = thread; i < plan.experts; i += block.threads()) {
      int32_t next = plan.expert_begin[i] + plan.chunk_experts[row * plan.experts + i];
      for (int32_t slot = chunk.first_slot; slot < chunk.last_slot; ++slot) {
        if (plan.ids[slot] != i) continue;
        plan.row_token[next] = slot / plan.top_k;
        plan.row_of_slot[slot] = next++;
      }
    }
    for (int32_t g = thread; g < plan.groups; g += block.threads()) {
      int32_t next = plan.group_begin[g] + plan.chunk_groups[row * plan.groups + g];
      for (int32_t slot = chunk.first_slot; slot < chunk.last_slot; ++slot) {
        if (plan.slot_group[slot] != g) continue;
        plan.latent_token[next] = slot / plan.top_k;
        plan.slot_latent[slot] = next++;
      }
    }
  });
  block.each_thread([&](int thread) {
    for (int32_t slot = chunk.first_slot + thread; slot < chunk.last_slot; slot += block.threads()) {
      if (plan.slot_group[slot] == kInvalidSlot) {
        plan.row_of_slot[slot] = -1;
        plan.slot_latent[slot] = -1;
        continue;
      }
      const int32_t first = plan.slot_group[slot] == kLaterSlot ? first_slot_of_group(plan, slot) : slot;
      const int32_t latent = plan.slot_latent[first];
      if (first != slot) plan.slot_latent[slot] = latent;
      plan.row_latent[plan.row_of_slot[slot]] = latent;
    }
  });
}

// All three steps of a routing that is one chunk, by one block.
template <class Block>
MOLAE_HD void sort_chunk(const Block& block, const RoutingPlan& plan, PlanShared& shared) {
  count_chunk(block, plan);
  plan_rows(block, plan, shared);
  scatter_chunk(block, plan);
}

}  // namespace molae::cuda
