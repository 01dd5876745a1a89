#pragma once

#include "cuda/logic/grouped_gemm.h"
#include "cuda/logic/hopper/tile_schedule.h"
#include "cuda/logic/hopper/tile_shape.h"

// What a tile multiplies. A pass runs through the inner dimension of one factor and has one box of weights, or two that
// meet the same tokens: neighbouring columns, or the same columns of gate and up.
namespace molae::cuda::hopper {

template <class In>
struct HopperGemm {
  GroupedGemm<In> product;
  int64_t row_tiles;    // of product.tiles
  int64_t max_columns;  // the most rows that a weight of product.first has
  bool dual;            // with product.second
};

template <class In>
struct Pass {
  const Factor<In>* factor;
  int32_t inner;
  int half;   // of the sums that it adds to, where it has one box
  int boxes;  // 1 or 2
  const WeightMap* maps[2];
  int32_t columns[2];  // where in the weights the boxes begin

  MOLAE_HD int32_t steps() const { return static_cast<int32_t>(ceil_div(inner, kStageInner)); }
};

template <class Shape>
MOLAE_HD TileSchedule schedule_of(const HopperGemm<typename Shape::In>& args) {
  const int32_t columns = Shape::tile_columns(args.dual);
  return {args.product.tiles, args.row_tiles, ceil_div(args.max_columns, columns), columns};
}

// Whether both factors multiply the same rows: those of a dense layer, and latent ones of one basis. Their weights then
// have the same inner size.
template <class In>
MOLAE_HD bool shares_tokens(const GroupedGemm<In>& product) {
  return product.first.input == product.second.input && product.first.gather == product.second.gather &&
         product.first.stride == product.second.stride;
}

template <class Shape>
MOLAE_HD int pass_count(const HopperGemm<typename Shape::In>& args) {
  return args.dual && Shape::kBoxes == 1 ? 2 : 1;
}

// In stages of two boxes a dual product is one pass: its factors share their tokens.
template <class Shape>
MOLAE_HD Pass<typename Shape::In> pass_of(const HopperGemm<typename Shape::In>& args, const OutputTile& tile,
                                          int index) {
  const int32_t problem = tile.rows.problem;
  const auto& first = args.product.first;
  const auto& factor = index == 0 ? first : args.product.second;
  const Weight& weight = factor.weights[problem];
  Pass<typename Shape::In> pass{&factor, weight.inner, index, 1, {factor.maps + problem, nullptr}, {tile.column, 0}};
  if constexpr (Shape::kBoxes == 2) {
    const int32_t next = tile.column + kBoxRows;
    if (args.dual) {
      pass.boxes = 2;
      pass.maps[1] = args.product.second.maps + problem;
      pass.columns[1] = tile.column;
    } else if (next < weight.rows) {
      pass.boxes = 2;
      pass.maps[1] = first.maps + problem;
      pass.columns[1] = next;
    }
  }
  return pass;
}

}  // namespace molae::cuda::hopper
