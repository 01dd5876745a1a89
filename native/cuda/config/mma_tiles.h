#pragma once

#include "cuda/config/tile_choice.h"
#include "cuda/logic/simt_math.h"
#include "cuda/logic/tensor_core_math.h"

// The tiles that any GPU from compute capability 8.0 on computes.
namespace molae::cuda {

// Rows, columns, inner size of a stage, stages, rows and columns of a warp. With few rows, long runs of
// weights and many stages of them; else 32 x 64 sums a warp, for which an operand comes from shared memory once.
template <class In>
using SmallTile = TensorCoreMath<In, 16, 64, 64, 4, 16, 16>;
template <class In>
using MediumTile = TensorCoreMath<In, 64, 128, 32, 3, 32, 64>;
template <class In>
using LargeTile = TensorCoreMath<In, 128, 128, 32, 3, 32, 64>;
// Threads, not warps, share the work; stages by the shared memory that they take.
template <class In>
using SimtTile = SimtMath<In, 64, 64, 16, sizeof(In) == 8 ? 3 : 4>;

static_assert(SmallTile<BF16>::kRows == tile_rows(GemmTile::Small));
static_assert(MediumTile<BF16>::kRows == tile_rows(GemmTile::Medium));
static_assert(LargeTile<BF16>::kRows == tile_rows(GemmTile::Large));
static_assert(SimtTile<float>::kRows == tile_rows(GemmTile::Simt));

}  // namespace molae::cuda
