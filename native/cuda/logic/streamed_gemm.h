#pragma once

#include "cuda/config/tile_choice.h"
#include "cuda/logic/grouped_gemm.h"
#include "cuda/logic/split_sums.h"

// The grouped product of logic/grouped_gemm.h for tiles of up to 4 rows, as decode has them: reading the weights is all
// that it costs. A warp has some columns of the output, that is rows of the weight, and reads each of them once, 16
// bytes a lane, straight into registers; what it reads of the input serves all its columns. Where tiles and columns are
// too few to fill a card, the inner dimension is cut as well, and the partial sums are added up in a fixed order
// (split_sums.h): no atomics, the same bits every time.
namespace molae::cuda {

inline constexpr int kStreamRows = 4;
inline constexpr int kStreamLanes = 32;
inline constexpr int kStreamWarps = 4;
inline constexpr int kStreamWarpColumns = 4;
inline constexpr int kStreamColumns = kStreamWarps * kStreamWarpColumns;
inline constexpr int kStreamThreads = kStreamLanes * kStreamWarps;
inline constexpr int kStreamSums = kStreamColumns * kStreamRows;
static_assert(kStreamRows == tile_rows(GemmTile::Stream) && kStreamSums <= kStreamThreads);
// Where the inner dimension is cut: at multiples of what a warp's loads of the narrowest weights span, so that vectors
// stay whole.
inline constexpr int32_t kSplitUnit = kStreamLanes * 8;
static_assert(kMaxCount / kSplitUnit * kMaxSplits <= INT32_MAX);

template <class In>
struct StreamedGemm : GroupedGemms<In> {
  int32_t splits;  // more than one: all outputs are wide, and none is dual
  int64_t plane;   // elements from one split's output to the next one's
};

// Which block of a grid of row tiles by columns by products (and their splits).
struct StreamIndex {
  int32_t row_tile, column_block, product, split;
};

MOLAE_HD StreamIndex stream_index(int64_t x, int64_t y, int64_t z, int32_t splits) {
  return {static_cast<int32_t>(x), static_cast<int32_t>(y), static_cast<int32_t>(z / splits),
          static_cast<int32_t>(z % splits)};
}

template <class In, bool kDual>
struct StreamShared {
  // Padded: threads that add up different sums read different banks.
  Sum<In> sums[kDual ? 2 : 1][kStreamSums][kStreamLanes + 1];
};

struct InnerRange {
  int32_t begin, end;
};

// In 32 bits, where division is fast: inner is at most kMaxCount, and there are at most kMaxSplits splits.
MOLAE_HD InnerRange split_range(int32_t inner, int32_t split, int32_t splits) {
  const uint32_t units = (static_cast<uint32_t>(inner) + kSplitUnit - 1) / kSplitUnit;
  const auto cut = [&](uint32_t i) {
    const auto at = static_cast<int32_t>(units * i / static_cast<uint32_t>(splits) * kSplitUnit);
    return at < inner ? at : inner;
  };
  return {cut(split), cut(split + 1)};
}

// What a warp multiplies: the rows of a tile and some columns of one factor.
template <class In>
struct StreamSource {
  using Sums = Sum<In>[kStreamWarpColumns][kStreamRows];

  const In* rows[kStreamRows];
  int32_t count;  // of rows
  Weight weight;
  int32_t column;
  bool input_vectors;

  MOLAE_HD StreamSource(const Factor<In>& factor, const RowTile& tile, int32_t first_column)
      : count(tile.end - tile.begin), weight(factor.weights[tile.problem]), column(first_column) {
    input_vectors = factor.stride % (16 / sizeof(In)) == 0 && aligned16(factor.input);
    MOLAE_UNROLL
    for (int r = 0; r < kStreamRows; ++r) {
      const int64_t at = tile.begin + (r < count ? r : 0);
      rows[r] = factor.input + (factor.gather ? factor.gather[at] : at) * factor.stride;
    }
  }

  // Where a column's weights begin. What is beyond the last column is read and not used.
  MOLAE_HD int64_t weights_of(int c) const {
    const int32_t at = column + c < weight.rows ? column + c : weight.rows - 1;
    return static_cast<int64_t>(at) * weight.inner;
  }

  template <class Block>
  MOLAE_HD void accumulate(const Block& block, const InnerRange& range, int lane, Sums& sums) const {
    if (weight.dtype == DTypeOf<In>::value && has_vectors<In>())
      return accumulate_vectors<In>(block, range, lane, sums);
    if constexpr (DTypeOf<In>::value == DType::F32) {  // of mixed layers
      if (weight.dtype == DType::BF16 && has_vectors<BF16>()) return accumulate_vectors<BF16>(block, range, lane, sums);
      if (weight.dtype == DType::F16 && has_vectors<F16>()) return accumulate_vectors<F16>(block, range, lane, sums);
    }
    accumulate_elements(range, lane, sums);
  }

 private:
  template <class W>
  MOLAE_HD bool has_vectors() const {
    return input_vectors && weight.inner % (16 / sizeof(W)) == 0 && aligned16(weight.data);
  }

  // Two loads of each column are under way at a time.
  template <class W, class Block>
  MOLAE_HD void accumulate_vectors(const Block& block, const InnerRange& range, int lane, Sums& sums) const {
    constexpr int kCount = 16 / sizeof(W);
    constexpr int kStep = kStreamLanes * kCount;
    const W* columns[kStreamWarpColumns];
    MOLAE_UNROLL
    for (int c = 0; c < kStreamWarpColumns; ++c) columns[c] = static_cast<const W*>(weight.data) + weights_of(c);
    MOLAE_ROLLED
    for (int32_t k = range.begin + lane * kCount; k < range.end; k += 2 * kStep) {
      const bool more = k + kStep < range.end;
      const int32_t next = more ? k + kStep : k;
      Pack<W, kCount> first[kStreamWarpColumns], second[kStreamWarpColumns];
      MOLAE_UNROLL
      for (int c = 0; c < kStreamWarpColumns; ++c) first[c] = block.template load_once<Pack<W, kCount>>(columns[c] + k);
      MOLAE_UNROLL
      for (int c = 0; c < kStreamWarpColumns; ++c) {
        second[c] = block.template load_once<Pack<W, kCount>>(columns[c] + next);
      }
      add_products<W, kCount>(first, k, sums);
      if (more) add_products<W, kCount>(second, next, sums);
    }
  }

  template <class W, int kCount>
  MOLAE_HD void add_products(const Pack<W, kCount> (&weights)[kStreamWarpColumns], int32_t k, Sums& sums) const {
    MOLAE_UNROLL
    for (int r = 0; r < kStreamRows; ++r) {
      if (r >= count) continue;
      const auto values = *reinterpret_cast<const Pack<In, kCount>*>(rows[r] + k);
      MOLAE_UNROLL
      for (int c = 0; c < kStreamWarpColumns; ++c) {
        MOLAE_UNROLL
        for (int i = 0; i < kCount; ++i) {
          sums[c][r] += widened<Sum<In>>(weights[c].items[i]) * widened<Sum<In>>(values.items[i]);
        }
      }
    }
  }

  // Rows that are no multiples of 16 bytes, and dtypes that a layer has beside its own.
  MOLAE_HD void accumulate_elements(const InnerRange& range, int lane, Sums& sums) const {
    MOLAE_ROLLED
    for (int32_t k = range.begin + lane; k < range.end; k += kStreamLanes) {
      MOLAE_UNROLL
      for (int c = 0; c < kStreamWarpColumns; ++c) {
        const auto value = Convert<Sum<In>, In>::of(load_as<In>(weight.dtype, weight.data, weights_of(c) + k));
        MOLAE_UNROLL
        for (int r = 0; r < kStreamRows; ++r) {
          if (r < count) sums[c][r] += value * Convert<Sum<In>, In>::of(rows[r][k]);
        }
      }
    }
  }
};

// Asks for a block's first weights ahead of time, a line a thread. Reads the tile map and the tables of weights,
// nothing else.
template <class In, bool kDual, class Block>
MOLAE_HD void prefetch_weights(const Block& block, const StreamIndex& at, const StreamedGemm<In>& args) {
  constexpr int kLines = kStreamThreads / kStreamColumns;
  const GroupedGemm<In>& product = args.products[at.product];
  const int32_t problem = block.load_from_l2(&product.tiles[at.row_tile].problem);
  if (problem < 0) return;
  const auto prefetch = [&](const Weight& weight) {
    const InnerRange range = split_range(weight.inner, at.split, args.splits);
    prefetch_columns<kStreamColumns, kLines, kStreamThreads>(
        block, weight, {at.column_block * kStreamColumns, range.begin, range.end});
  };
  prefetch(product.first.weights[problem]);
  if constexpr (kDual) prefetch(product.second.weights[problem]);
}

// A lane's share of the sums of one factor, for add_lanes.
template <class In, class Block>
MOLAE_HD void store_lane_sums(const Block& block, const Factor<In>& factor, const RowTile& tile, int32_t column,
                              const StreamIndex& at, int32_t splits, int thread,
                              Sum<In> (&shared)[kStreamSums][kStreamLanes + 1]) {
  const int lane = thread % kStreamLanes;
  const int warp_column = thread / kStreamLanes * kStreamWarpColumns;
  typename StreamSource<In>::Sums sums;
  MOLAE_UNROLL
  for (int c = 0; c < kStreamWarpColumns; ++c) {
    MOLAE_UNROLL
    for (int r = 0; r < kStreamRows; ++r) sums[c][r] = 0;
  }
  const StreamSource<In> source(factor, tile, column + warp_column);
  source.accumulate(block, split_range(source.weight.inner, at.split, splits), lane, sums);
  MOLAE_UNROLL
  for (int c = 0; c < kStreamWarpColumns; ++c) {
    MOLAE_UNROLL
    for (int r = 0; r < kStreamRows; ++r) shared[(warp_column + c) * kStreamRows + r][lane] = sums[c][r];
  }
}

template <class Wide>
MOLAE_HD Wide add_lanes(const Wide (&lanes)[kStreamLanes + 1]) {
  Wide sum = 0;
  for (int lane = 0; lane < kStreamLanes; ++lane) sum += lanes[lane];
  return sum;
}

// One block: one tile of rows by some columns by one part of the inner dimension.
template <class In, bool kDual, class Block>
MOLAE_HD void streamed_gemm_block(const Block& block, const StreamIndex& at, const StreamedGemm<In>& args,
                                  StreamShared<In, kDual>& shared) {
  const GroupedGemm<In>& product = args.products[at.product];
  const RowTile tile = product.tiles[at.row_tile];
  if (tile.problem < 0) return;
  const int32_t columns = product.first.weights[tile.problem].rows;
  const int32_t column = at.column_block * kStreamColumns;
  if (column >= columns) return;

  block.each_thread([&](int thread) {
    store_lane_sums(block, product.first, tile, column, at, args.splits, thread, shared.sums[0]);
    if constexpr (kDual) {
      store_lane_sums(block, product.second, tile, column, at, args.splits, thread, shared.sums[1]);
    }
  });
  block.each_thread_unsynced([&](int thread) {
    const int64_t row = tile.begin + thread % kStreamRows;
    const int32_t col = column + thread / kStreamRows;
    if (thread >= kStreamSums || row >= tile.end || col >= columns) return;
    Sum<In> value = add_lanes(shared.sums[0][thread]);
    if constexpr (kDual) value = activated(product.activation, value) * add_lanes(shared.sums[1][thread]);
    const int64_t to = row * product.out_stride + col;
    if (product.wide) {
      static_cast<Sum<In>*>(product.out)[at.split * args.plane + to] = value;
    } else {
      static_cast<In*>(product.out)[to] = Convert<In, Sum<In>>::of(value);
    }
  });
}

// What becomes of split sums that the next product is to read: rounded, z of gate and of up; or, from both of them,
//   out = act(first) * second.
template <class In>
struct SplitOutput {
  SplitSums<In> sums;
  const Weight* weights;  // by problem, for their columns
  In* out;
  int64_t out_stride;
};

template <class In>
struct JoinSplits {
  const RowTile* tiles;
  SplitOutput<In> outputs[2];
  int32_t count;          // of outputs
  bool dual;              // the first output is of both sums
  Activation activation;  // only then
  int64_t row_tiles;
  int64_t max_columns;
};

inline constexpr int kJoinThreads = 128;

// One block: one tile of rows by some columns. kDual: of both outputs' sums, to the first one's `out`.
template <class In, bool kDual, class Block>
MOLAE_HD void join_splits(const Block& block, const StreamIndex& at, const JoinSplits<In>& args) {
  const RowTile tile = args.tiles[at.row_tile];
  if (tile.problem < 0) return;
  const SplitOutput<In>& output = args.outputs[at.product];
  block.each_thread_unsynced([&](int thread) {
    const int64_t col = static_cast<int64_t>(at.column_block) * kJoinThreads + thread;
    if (col >= output.weights[tile.problem].rows) return;
    for (int64_t row = tile.begin; row < tile.end; ++row) {
      Sum<In> value = output.sums.at(row, col);
      if constexpr (kDual) value = activated(args.activation, value) * args.outputs[1].sums.at(row, col);
      output.out[row * output.out_stride + col] = Convert<In, Sum<In>>::of(value);
    }
  });
}

}  // namespace molae::cuda
