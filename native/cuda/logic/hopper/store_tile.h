#pragma once

#include "cuda/logic/hopper/fragment.h"
#include "cuda/logic/hopper/passes.h"

// What becomes of a tile's sums. Whatever is the same for the whole tile is asked once, outside of the loops over sums:
// the activation, the format, and whether all of the tile is inside its matrix.
namespace molae::cuda::hopper {

// Stores one box of a thread's sums, of columns `first_column` to `end_column`. kWhole: all of it is inside.
template <class Shape, class Out, bool kWhole>
MOLAE_HD void store_box(int thread, int consumer, const GroupedGemm<typename Shape::In>& product, const RowTile& tile,
                        int32_t first_column, int32_t end_column, const float* sums) {
  constexpr bool kSwapped = Shape::kSwapped;
  constexpr int kRun = kSwapped ? 1 : kFragmentRun;
  const int m = consumer * kGroupRows + fragment_row(thread, 0), n = fragment_column(thread, 0);
  const int32_t row = tile.begin + (kSwapped ? n : m), column = first_column + (kSwapped ? m : n);
  const int32_t rows = tile.end - row, columns = end_column - column;
  const int64_t stride = product.out_stride;
  Out* const out = static_cast<Out*>(product.out) + row * stride + column;
  MOLAE_UNROLL
  for (int sum = 0; sum < Shape::kHalf; sum += kRun) {
    // From the thread's first sum.
    const int down = kSwapped ? fragment_column(0, sum) : fragment_row(0, sum);
    const int across = kSwapped ? fragment_row(0, sum) : fragment_column(0, sum);
    if (!kWhole && (down >= rows || across >= columns)) continue;
    Out* const to = out + down * stride + across;
    if (kRun == 2 && (kWhole || across + 1 < columns)) {  // an even column of rows that are 16 bytes apart: aligned
      *reinterpret_cast<Pair<Out>*>(to) = narrowed_pair<Out>(sums[sum], sums[sum + 1]);
    } else {
      *to = narrowed<Out>(sums[sum]);
    }
  }
}

template <class Shape, class Out, bool kWhole>
MOLAE_HD void store_boxes(int thread, int consumer, const HopperGemm<typename Shape::In>& args, const OutputTile& tile,
                          int32_t columns, const typename Shape::Sums& sums) {
  store_box<Shape, Out, kWhole>(thread, consumer, args.product, tile.rows, tile.column, columns, sums.values);
  if constexpr (Shape::kBoxes == 2) {
    if (args.dual) return;
    store_box<Shape, Out, kWhole>(thread, consumer, args.product, tile.rows, tile.column + kBoxRows, columns,
                                  sums.values + Shape::kHalf);
  }
}

template <class Shape, class Out>
MOLAE_HD void store_as_type(int thread, int consumer, const HopperGemm<typename Shape::In>& args,
                            const OutputTile& tile, const typename Shape::Sums& sums) {
  const int32_t columns = args.product.first.weights[tile.rows.problem].rows;
  const bool whole =
      tile.rows.end - tile.rows.begin == Shape::kRows && columns - tile.column >= Shape::tile_columns(args.dual);
  if (whole) {
    store_boxes<Shape, Out, true>(thread, consumer, args, tile, columns, sums);
  } else {
    store_boxes<Shape, Out, false>(thread, consumer, args, tile, columns, sums);
  }
}

template <class Shape>
MOLAE_HD void store_tile(int thread, int consumer, const HopperGemm<typename Shape::In>& args, const OutputTile& tile,
                         typename Shape::Sums& sums) {
  using In = typename Shape::In;
  if (args.dual) {
    with_activation<FunctionsFor<In>>(args.product.activation, [&](auto activate) {
      MOLAE_UNROLL
      for (int sum = 0; sum < Shape::kHalf; ++sum) {
        sums.values[sum] = activate(sums.values[sum]) * sums.values[Shape::kHalf + sum];
      }
    });
  }
  if (args.product.wide) {
    store_as_type<Shape, Sum<In>>(thread, consumer, args, tile, sums);
  } else {
    store_as_type<Shape, In>(thread, consumer, args, tile, sums);
  }
}

}  // namespace molae::cuda::hopper
