#pragma once

#include <cstdint>

#include "cuda/logic/host_device.h"

// Where the grouped kernels find the (token, expert) pairs of a routing. All of it is in device memory and made there:
// no count comes back to the host, which sizes arrays and grids by the upper bounds below.
namespace molae::cuda {

// Up to this many experts (and groups) a layer: their counts are scanned in the shared memory of one block.
inline constexpr int32_t kMaxExperts = 2048;

// Kernels count rows, columns and pairs in 32 bits.
inline constexpr int64_t kMaxCount = int64_t{1} << 30;

// Tokens that one block of the counting sort takes.
inline constexpr int32_t kSortTokens = 64;
inline constexpr int kSortThreads = 256;
inline constexpr int kScanThreads = 512;

// Consecutive rows of one problem (an expert, a group) that one block of a grouped product computes.
struct RowTile {
  int32_t problem;  // -1: nothing to do
  int32_t begin, end;
};

// All rows of problems of one kind in tiles, problem after problem. Tiles that are not needed follow.
struct TileMap {
  RowTile* tiles;  // [capacity]
  int32_t capacity;
  int32_t rows;  // of a tile at most
};

// Row: a (token, expert) pair, sorted by (expert, token). Latent row: a distinct (token, group) pair, sorted by (group,
// token). Slot: token * top_k + k. Cf. SortedRouting in core/routing.h.
struct RoutingPlan {
  const int32_t* ids;       // [tokens, top_k]
  const int32_t* group_of;  // [experts]
  int32_t tokens, top_k, experts, groups;
  int64_t first_token;  // what the first of the tokens is called in errors: they may be a part of the caller's

  // Between the steps of the sort: how many pairs of each expert (group) are in a chunk of tokens, then how many are in
  // the chunks before it.
  int32_t* chunk_experts;  // [chunks, experts]
  int32_t* chunk_groups;   // [chunks, groups]

  int32_t* expert_begin;  // [experts + 1]
  int32_t* group_begin;   // [groups + 1]
  int32_t* row_token;     // [tokens * top_k]
  int32_t* row_latent;    // [tokens * top_k] latent row of a row
  int32_t* row_of_slot;   // [tokens * top_k]; -1 for an invalid id
  int32_t* slot_group;    // [tokens * top_k] group, at the token's first slot in that group; else one of the two below
  int32_t* slot_latent;   // [tokens * top_k] latent row of a slot
  int32_t* latent_token;  // [latent rows at most]

  TileMap expert_tiles;
  TileMap group_tiles;
  TileMap token_tiles;  // all tokens as one problem, for the shared expert

  unsigned long long* error;
};

inline constexpr int32_t kLaterSlot = -1;    // in slot_group: another slot of the token came first in the group
inline constexpr int32_t kInvalidSlot = -2;  // in slot_group: no such expert

MOLAE_HD int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Tiles that `rows` rows of at most `problems` problems can need: a problem with c > 0 rows needs 1 + (c - 1) /
// tile_rows of them.
MOLAE_HD int64_t tile_bound(int64_t rows, int64_t problems, int64_t tile_rows) {
  const int64_t first = rows < problems ? rows : problems;  // tiles that are a problem's first
  return first + (rows - first) / tile_rows;
}

MOLAE_HD int64_t latent_row_bound(int64_t tokens, int64_t top_k, int64_t groups) {
  return tokens * (top_k < groups ? top_k : groups);
}

}  // namespace molae::cuda
