#pragma once

#include "cuda/logic/hopper/fragment.h"
#include "cuda/logic/hopper/matrix_descriptor.h"
#include "cuda/logic/hopper/ring.h"
#include "cuda/logic/hopper/weight_map.h"

// The shapes of the Hopper tiles: one warpgroup copies (the producer), two multiply (the consumers), and each of these
// has 64 of the M side's 128 rows.
namespace molae::cuda::hopper {

inline constexpr int kConsumers = 2;
inline constexpr int kWarps = kGroupThreads / 32;
inline constexpr int kStageInner = kBoxInner;  // halves of the inner dimension in a stage
inline constexpr int kInstructions = kStageInner / kInstructionInner;

// kTileRows: rows of the grouped product (tokens) in a tile. kIsSwapped: the weights are the M side of the tensor
// cores' product, of which they want 64 rows, and the tokens the N side, which may be as narrow as 8. kStageBoxes:
// boxes of weights in a stage. Two make a tile 256 columns wide, or 128 columns of gate and of up that meet the same
// tokens: the wider a wgmma, the less shared memory it reads for what it computes.
template <class Input, int kTileRows, bool kIsSwapped, int kStageBoxes>
struct TileShape {
  using In = Input;
  static constexpr int kRows = kTileRows;
  static constexpr bool kSwapped = kIsSwapped;
  static constexpr int kBoxes = kStageBoxes;
  static constexpr int kTokenBytes = kRows * kRowBytes;
  // As many as there is room for, but 8 are enough to keep the memory busy.
  static constexpr int kRoom = 200 * 1024 / (kBoxes * kBoxBytes + kTokenBytes);
  static constexpr int kStages = kRoom < 8 ? kRoom : 8;
  static_assert(kRows % kSwizzleRows == 0 && (kSwapped ? kRows <= 64 : kRows == kConsumers * kGroupRows));
  static_assert(kBoxes == 1 || (kBoxes == 2 && !kSwapped));

  // A thread's sums: of the first factor (or the first box), then of the second.
  static constexpr int kHalf = fragment_sums(kSwapped ? kRows : kBoxRows);
  struct Sums {
    float values[2 * kHalf];
  };

  static MOLAE_HD int tile_columns(bool dual) { return dual ? kBoxRows : kBoxes * kBoxRows; }
};

// With few tokens reading the weights is the work, and narrow tiles spread it over more multiprocessors.
template <class In, int kTileRows>
using SwappedTile = TileShape<In, kTileRows, true, 1>;
// For one factor, or two that multiply the same tokens.
template <class In>
using WideTile = TileShape<In, 128, false, 2>;
// For two factors with tokens of their own.
template <class In>
using PairedTile = TileShape<In, 128, false, 1>;

// Shared memory of a block.
template <class Shape>
struct alignas(kSwizzleBytes) TileShared {
  struct alignas(kSwizzleBytes) Stage {
    unsigned char weights[Shape::kBoxes * kBoxBytes];
    alignas(kSwizzleBytes) unsigned char tokens[Shape::kTokenBytes];
  };
  Stage stages[Shape::kStages];
  Barrier full[Shape::kStages], empty[Shape::kStages];
};

}  // namespace molae::cuda::hopper
