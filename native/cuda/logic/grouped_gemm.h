#pragma once

#include <cstdint>

#include "cuda/logic/epilogue.h"
#include "cuda/logic/hopper/weight_map.h"
#include "cuda/logic/routing_plan.h"
#include "cuda/logic/weight.h"

// The one matrix product of the layer's stages: for each row of each problem (an expert, a group),
//   out[row] = W x[row]                      or, with a second factor,
//   out[row] = act(W1 x1[row]) * (W2 x2[row])
// where a row's inputs may be gathered, and every problem has a weight matrix of its own, with sizes of its own.
// Indexing, bounds, buffering and epilogue are here; `Math` multiplies the tiles: the tensor cores
// (tensor_core_math.h) or plain fused multiply-adds (simt_math.h). Hopper's tiles have a body of their own,
// logic/hopper/grouped_gemm.h.
namespace molae::cuda {

template <class In>
struct Factor {
  const In* input;        // [.., stride]
  int64_t stride;         // at least the inner size of every weight
  const int32_t* gather;  // row -> row of input; null: the same
  const Weight* weights;  // by problem
  const WeightMap* maps;  // by problem, for Hopper's tiles; else null
};

template <class In>
struct GroupedGemm {
  Factor<In> first;
  Factor<In> second;  // only in dual products
  const RowTile* tiles;
  Activation activation;  // only in dual products
  bool wide;              // out is Sum<In>, else In; never in dual products
  void* out;              // [.., out_stride], 16-byte aligned
  int64_t out_stride;     // a multiple of 8
};

// What one launch computes: a product, or two of the same rows side by side, as z of gate and of up are; or a dual one.
template <class In>
struct GroupedGemms {
  GroupedGemm<In> products[2];
  int32_t count;        // of products
  bool dual;            // with products[0].second
  int64_t row_tiles;    // of the products' map
  int64_t max_columns;  // the most rows that a weight of the products' first factors has
};

// Shared memory of one block: a ring of stages.
template <class Math>
struct GemmShared {
  alignas(128) typename Math::In a[Math::kStages][Math::kRows * Math::kStride];
  alignas(128) typename Math::In b[Math::kStages][Math::kCols * Math::kStride];
  alignas(128) typename Math::Scratch scratch;
};

MOLAE_HD bool aligned16(const void* pointer) { return (reinterpret_cast<uintptr_t>(pointer) & 15u) == 0; }

// The 16-byte vectors of a stage that a thread copies: of rows that stay the same from stage to stage, and are looked
// up once, before the first.
template <class Math, int kRows>
class RowCopies {
  using In = typename Math::In;
  static constexpr int kVector = 16 / sizeof(In);
  static constexpr int kPerRow = Math::kInner / kVector;
  static constexpr int kCount = kRows * kPerRow / Math::kThreads;
  static_assert(kCount * Math::kThreads == kRows * kPerRow, "every thread copies as many");

 public:
  // row_at(row): where it is; null where there is none, and zeros take its place.
  template <class RowAt>
  MOLAE_HD void begin(int thread, RowAt row_at) {
    MOLAE_UNROLL
    for (int n = 0; n < kCount; ++n) rows_[n] = row_at((thread + n * Math::kThreads) / kPerRow);
  }

  // The stage that begins at k0; `any` is an address that may be read from.
  template <class Block>
  MOLAE_HD void copy(const Block& block, int thread, int32_t k0, int32_t inner, const In* any, In* to) const {
    MOLAE_UNROLL
    for (int n = 0; n < kCount; ++n) {
      const int i = thread + n * Math::kThreads;
      const int k = i % kPerRow * kVector;
      const bool valid = rows_[n] != nullptr && k0 + k < inner;
      block.copy16(to + i / kPerRow * Math::kStride + k, valid ? rows_[n] + k0 + k : any, valid ? 16 : 0);
    }
  }

 private:
  const In* rows_[kCount];
};

// Which elements of the tile at hand are where, for one factor.
template <class Math>
struct TileSource {
  using In = typename Math::In;
  static constexpr int kVector = 16 / sizeof(In);

  Factor<In> factor;
  Weight weight;
  RowTile tile;
  int32_t col;
  bool input_vectors, weight_vectors;  // whole 16-byte vectors, aligned

  MOLAE_HD TileSource(const Factor<In>& f, const RowTile& t, int32_t first_col)
      : factor(f), weight(f.weights[t.problem]), tile(t), col(first_col) {
    const bool whole = weight.inner % kVector == 0;
    input_vectors = whole && factor.stride % kVector == 0 && aligned16(factor.input);
    weight_vectors = whole && weight.dtype == DTypeOf<In>::value && aligned16(weight.data);
  }

  // Null where the tile has no such row or column.
  MOLAE_HD const In* input_row(int32_t row) const {
    const int64_t at = tile.begin + row;
    if (at >= tile.end) return nullptr;
    return factor.input + (factor.gather ? factor.gather[at] : at) * factor.stride;
  }
  MOLAE_HD const In* weight_row(int32_t j) const {
    if (col + j >= weight.rows) return nullptr;
    return static_cast<const In*>(weight.data) + static_cast<int64_t>(col + j) * weight.inner;
  }

  // Element by element, whatever the alignment and the weight's dtype.
  MOLAE_HD void load_input(int thread, int32_t k0, In* to) const {
    for (int i = thread; i < Math::kRows * Math::kInner; i += Math::kThreads) {
      const int k = i % Math::kInner;
      const In* row = k0 + k < weight.inner ? input_row(i / Math::kInner) : nullptr;
      to[i / Math::kInner * Math::kStride + k] = row ? row[k0 + k] : FromFloat<In>::of(0);
    }
  }
  MOLAE_HD void load_weight(int thread, int32_t k0, In* to) const {
    for (int i = thread; i < Math::kCols * Math::kInner; i += Math::kThreads) {
      const int j = i / Math::kInner;
      const int k = i % Math::kInner;
      const bool valid = col + j < weight.rows && k0 + k < weight.inner;
      to[j * Math::kStride + k] =
          valid ? load_as<In>(weight.dtype, weight.data, static_cast<int64_t>(col + j) * weight.inner + k0 + k)
                : FromFloat<In>::of(0);
    }
  }
};

// What a thread copies of every stage: vectors, or elements where the matrix at hand has none.
template <class Math>
struct StageCopies {
  RowCopies<Math, Math::kRows> input;
  RowCopies<Math, Math::kCols> weight;

  MOLAE_HD void begin(int thread, const TileSource<Math>& source) {
    if (source.input_vectors) input.begin(thread, [&](int row) { return source.input_row(row); });
    if (source.weight_vectors) weight.begin(thread, [&](int j) { return source.weight_row(j); });
  }

  template <class Block>
  MOLAE_HD void load(const Block& block, int thread, const TileSource<Math>& source, int32_t k0, typename Math::In* a,
                     typename Math::In* b) const {
    using In = typename Math::In;
    const int32_t inner = source.weight.inner;
    if (source.input_vectors) {
      input.copy(block, thread, k0, inner, source.factor.input, a);
    } else {
      source.load_input(thread, k0, a);
    }
    if (source.weight_vectors) {
      weight.copy(block, thread, k0, inner, static_cast<const In*>(source.weight.data), b);
    } else {
      source.load_weight(thread, k0, b);
    }
  }
};

// sums += the product of one factor's tile. While one stage is multiplied, the next ones are on their way.
template <class Math, class Block>
MOLAE_HD void accumulate_tile(const Block& block, const TileSource<Math>& source, GemmShared<Math>& shared,
                              typename Block::template Local<typename Math::Accumulator>& sums) {
  constexpr int kStages = Math::kStages;
  const auto steps = static_cast<int32_t>(ceil_div(source.weight.inner, Math::kInner));
  typename Block::template Local<StageCopies<Math>> copies(block);
  const auto load = [&](int thread, int32_t step) {
    if (step < steps) {
      copies[thread].load(block, thread, source, step * Math::kInner, shared.a[step % kStages],
                          shared.b[step % kStages]);
    }
    block.commit_copies();  // also an empty one: the stages are told apart by counting
  };

  block.each_thread_unsynced([&](int thread) {
    copies[thread].begin(thread, source);
    for (int32_t step = 0; step < kStages - 1; ++step) load(thread, step);
  });
  for (int32_t step = 0; step < steps; ++step) {
    // Behind this barrier stage `step` is complete, and nobody reads stage `step - 1` any more: the next load may
    // overwrite it.
    block.each_thread([&](int) { block.template await_copies<kStages - 2>(); });
    block.each_thread_unsynced([&](int thread) { load(thread, step + kStages - 1); });
    block.each_warp(
        [&](const auto& warp) { Math::multiply(warp, sums, shared.a[step % kStages], shared.b[step % kStages]); });
  }
  block.each_thread([&](int) { block.template await_copies<0>(); });
}

constexpr size_t vector_bytes(size_t bytes) { return bytes < 16 ? bytes : 16; }

// Stores `count` consecutive elements of one row, all of them or as many as the matrix has.
template <class In, int kCount>
MOLAE_HD void store_run(const GroupedGemm<In>& args, const RowTile& tile, int32_t cols, int32_t row, int32_t col,
                        const Sum<In>* values) {
  using Wide = Sum<In>;
  const int64_t at_row = tile.begin + row;
  if (at_row >= tile.end || col >= cols) return;
  const int64_t at = at_row * args.out_stride + col;
  if (kCount > 1 && col + kCount <= cols) {  // runs start at multiples of their length: aligned
    struct alignas(vector_bytes(kCount * sizeof(In))) Narrow {
      In items[kCount];
    };
    struct alignas(vector_bytes(kCount * sizeof(Wide))) WidePack {
      Wide items[kCount];
    };
    if (args.wide) {
      WidePack pack;
      MOLAE_UNROLL
      for (int i = 0; i < kCount; ++i) pack.items[i] = values[i];
      *reinterpret_cast<WidePack*>(static_cast<Wide*>(args.out) + at) = pack;
    } else {
      Narrow pack;
      MOLAE_UNROLL
      for (int i = 0; i < kCount; ++i) pack.items[i] = Convert<In, Wide>::of(values[i]);
      *reinterpret_cast<Narrow*>(static_cast<In*>(args.out) + at) = pack;
    }
    return;
  }
  MOLAE_UNROLL
  for (int i = 0; i < kCount; ++i) {
    if (col + i >= cols) continue;
    if (args.wide) {
      static_cast<Wide*>(args.out)[at + i] = values[i];
    } else {
      static_cast<In*>(args.out)[at + i] = Convert<In, Wide>::of(values[i]);
    }
  }
}

// Which tile a block has. Columns go first: the blocks that run together have a few tiles of rows and all of their
// columns, and the next rows are mostly the same problem's, so that both operands come from L2 after their first
// reading.
struct TileIndex {
  int row_tile, column_block;
};

template <class Math>
MOLAE_HD int64_t column_blocks(const GroupedGemms<typename Math::In>& args) {
  return ceil_div(args.max_columns, Math::kCols);
}

template <class Math>
MOLAE_HD TileIndex tile_index(const GroupedGemms<typename Math::In>& args, int block) {
  const auto across = static_cast<int>(column_blocks<Math>(args));
  return {block / across, block % across};
}

// Asks for the weights of a block's first stages ahead of time. Reads the tile map and the table of weights, nothing
// else.
template <class Math, class Block>
MOLAE_HD void prefetch_weights(const Block& block, const TileIndex& at, const GroupedGemm<typename Math::In>& args) {
  constexpr int32_t kAhead = (Math::kStages - 1) * Math::kInner;
  constexpr int kLines = (kAhead * static_cast<int>(sizeof(typename Math::In)) + 127) / 128;
  const int32_t problem = block.load_from_l2(&args.tiles[at.row_tile].problem);
  if (problem < 0) return;
  prefetch_columns<Math::kCols, kLines, Math::kThreads>(block, args.first.weights[problem],
                                                        {at.column_block * Math::kCols, 0, kAhead});
}

// One block: one tile of rows by one block of columns.
template <class Math, bool kDual, class Block>
MOLAE_HD void grouped_gemm_tile(const Block& block, const TileIndex& at, const GroupedGemm<typename Math::In>& args,
                                GemmShared<Math>& shared) {
  using Wide = Sum<typename Math::In>;
  const RowTile tile = args.tiles[at.row_tile];
  if (tile.problem < 0) return;
  const int32_t col = at.column_block * Math::kCols;
  const int32_t cols = args.first.weights[tile.problem].rows;
  if (col >= cols) return;

  typename Block::template Local<typename Math::Accumulator> first(block), second(block);
  block.each_thread_unsynced([&](int thread) { Math::clear(first[thread]); });
  accumulate_tile<Math>(block, TileSource<Math>(args.first, tile, col), shared, first);
  if constexpr (kDual) {
    block.each_thread_unsynced([&](int thread) { Math::clear(second[thread]); });
    accumulate_tile<Math>(block, TileSource<Math>(args.second, tile, col), shared, second);
  }
  if constexpr (kDual) {
    block.each_thread_unsynced([&](int thread) {
      Math::merge(first[thread], second[thread],
                  [&](Wide gate, Wide up) { return activated(args.activation, gate) * up; });
    });
  }
  block.each_warp([&](const auto& warp) {
    Math::each_run(warp, first, shared.scratch, [&](int row, int j, const Wide* values) {
      store_run<typename Math::In, Math::kRun>(args, tile, cols, row, col + j, values);
    });
  });
}

}  // namespace molae::cuda
