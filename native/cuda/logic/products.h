#pragma once

#include <algorithm>
#include <vector>

#include "cuda/config/tile_choice.h"
#include "cuda/logic/grouped_gemm.h"
#include "cuda/logic/split_sums.h"
#include "cuda/logic/streamed_gemm.h"
#include "cuda/logic/workspace.h"

// The grouped products of a layer's forward pass, by what becomes of their sums.
namespace molae::cuda {

// Rows are this far apart, so that 16-byte vectors are aligned.
inline int64_t rounded_up(int64_t size) { return (size + 7) / 8 * 8; }

// One side of a product, and the largest of its matrices.
template <class In>
struct Operand {
  Factor<In> factor;
  int64_t max_columns, max_inner;
};

// What products are over: the rows of experts, of groups or of the shared expert.
struct ProductRows {
  GemmTile tile;
  const RowTile* tiles;  // no larger than `tile`
  int64_t row_tiles;     // at most
  int64_t count;         // of rows, at most
};

// Sums as the next product reads them.
template <class In>
struct Rounded {
  In* data;
  int64_t stride;
};

template <class In, class Runtime>
class Products {
 public:
  using Wide = Sum<In>;

  Products(Runtime& runtime, Workspace<Runtime>& arrays, Activation activation)
      : runtime_(runtime), arrays_(arrays), activation_(activation) {}

  // W x[row], for one operand or two that share their rows.
  std::vector<Rounded<In>> rounded(const ProductRows& rows, const std::vector<Operand<In>>& operands) {
    std::vector<Rounded<In>> outs;
    if (operands.empty()) return outs;
    for (const Operand<In>& operand : operands) outs.push_back(matrix(rows, operand));
    if (rows.tile == GemmTile::Stream) {
      stream_rounded(rows, operands, outs);
    } else {
      GroupedGemms<In> args = side_by_side(rows, operands);
      for (size_t i = 0; i < operands.size(); ++i) args.products[i] = narrow(rows, operands[i], outs[i]);
      runtime_.grouped_gemm(rows.tile, args);
    }
    return outs;
  }

  // act(W1 x1[row]) * (W2 x2[row]).
  Rounded<In> gated(const ProductRows& rows, const Operand<In>& gate, const Operand<In>& up) {
    const Rounded<In> out = matrix(rows, gate);
    GroupedGemm<In> product = narrow(rows, gate, out);
    product.second = up.factor;
    if (rows.tile == GemmTile::Stream) {
      stream_gated(rows, gate, up, product);
    } else {
      GroupedGemms<In> args = side_by_side(rows, {gate});
      args.dual = true;
      args.products[0] = product;
      runtime_.grouped_gemm(rows.tile, args);
    }
    return out;
  }

  // W x[row], not rounded.
  SplitSums<In> summed(const ProductRows& rows, const Operand<In>& operand) {
    if (rows.tile == GemmTile::Stream) return stream_summed(rows, {operand}, splits_of(rows, {operand}))[0];
    const SplitSums<In> out = sums(rows, operand, 1);
    GroupedGemms<In> args = side_by_side(rows, {operand});
    args.products[0] = wide(rows, operand, out);
    runtime_.grouped_gemm(rows.tile, args);
    return out;
  }

 private:
  using Operands = std::vector<Operand<In>>;

  Rounded<In> matrix(const ProductRows& rows, const Operand<In>& operand) {
    const int64_t stride = rounded_up(operand.max_columns);
    return {arrays_.template array<In>(runtime_, rows.count * stride), stride};
  }
  SplitSums<In> sums(const ProductRows& rows, const Operand<In>& operand, int32_t splits) {
    const int64_t stride = rounded_up(operand.max_columns), plane = rows.count * stride;
    return {arrays_.template array<Wide>(runtime_, splits * plane), stride, plane, splits};
  }

  GroupedGemm<In> narrow(const ProductRows& rows, const Operand<In>& operand, const Rounded<In>& out) const {
    return {operand.factor, {}, rows.tiles, activation_, false, out.data, out.stride};
  }
  GroupedGemm<In> wide(const ProductRows& rows, const Operand<In>& operand, const SplitSums<In>& out) const {
    return {operand.factor, {}, rows.tiles, activation_, true, out.data, out.stride};
  }

  // A launch, but for its products.
  static GroupedGemms<In> side_by_side(const ProductRows& rows, const Operands& operands) {
    GroupedGemms<In> args{};
    args.count = static_cast<int32_t>(operands.size());
    args.row_tiles = rows.row_tiles;
    args.max_columns = largest(operands, &Operand<In>::max_columns);
    return args;
  }
  static int64_t largest(const Operands& operands, int64_t Operand<In>::*size) {
    int64_t most = 0;
    for (const Operand<In>& operand : operands) most = std::max(most, operand.*size);
    return most;
  }

  // --- The streaming kernel

  static int64_t blocks(const ProductRows& rows, const Operands& operands) {
    int64_t columns = 0;
    for (const Operand<In>& operand : operands) columns += ceil_div(operand.max_columns, kStreamColumns);
    return rows.row_tiles * columns;
  }
  int32_t splits_of(const ProductRows& rows, const Operands& operands) {
    return choose_splits(blocks(rows, operands), largest(operands, &Operand<In>::max_inner),
                         runtime_.multiprocessors());
  }

  StreamedGemm<In> streamed(const ProductRows& rows, const Operands& operands, int32_t splits) const {
    return {side_by_side(rows, operands), splits, 0};
  }

  std::vector<SplitSums<In>> stream_summed(const ProductRows& rows, const Operands& operands, int32_t splits) {
    StreamedGemm<In> args = streamed(rows, operands, splits);
    // Planes of one size, for both operands.
    const Operand<In> wider{{}, args.max_columns, 0};
    std::vector<SplitSums<In>> outs;
    for (size_t i = 0; i < operands.size(); ++i) {
      outs.push_back(sums(rows, wider, splits));
      args.products[i] = wide(rows, operands[i], outs[i]);
    }
    args.plane = outs[0].plane;
    runtime_.streamed_gemm(args);
    return outs;
  }

  JoinSplits<In> join(const ProductRows& rows, const Operands& operands,
                      const std::vector<SplitSums<In>>& parts) const {
    JoinSplits<In> args{};
    args.tiles = rows.tiles;
    args.count = static_cast<int32_t>(operands.size());
    args.activation = activation_;
    args.row_tiles = rows.row_tiles;
    args.max_columns = largest(operands, &Operand<In>::max_columns);
    for (size_t i = 0; i < operands.size(); ++i) args.outputs[i] = {parts[i], operands[i].factor.weights, nullptr, 0};
    return args;
  }

  void stream_rounded(const ProductRows& rows, const Operands& operands, const std::vector<Rounded<In>>& outs) {
    const int32_t splits = splits_of(rows, operands);
    if (splits == 1) {
      StreamedGemm<In> args = streamed(rows, operands, 1);
      for (size_t i = 0; i < operands.size(); ++i) args.products[i] = narrow(rows, operands[i], outs[i]);
      return runtime_.streamed_gemm(args);
    }
    JoinSplits<In> args = join(rows, operands, stream_summed(rows, operands, splits));
    for (size_t i = 0; i < operands.size(); ++i) {
      args.outputs[i].out = outs[i].data;
      args.outputs[i].out_stride = outs[i].stride;
    }
    runtime_.join_splits(args);
  }

  // Gate and up in one pass, or, where they are to be split, as products of their own: those have twice the blocks.
  void stream_gated(const ProductRows& rows, const Operand<In>& gate, const Operand<In>& up,
                    const GroupedGemm<In>& product) {
    if (splits_of(rows, {gate}) == 1) {
      StreamedGemm<In> args = streamed(rows, {gate}, 1);
      args.dual = true;
      args.products[0] = product;
      return runtime_.streamed_gemm(args);
    }
    const Operands both{gate, up};
    JoinSplits<In> args = join(rows, both, stream_summed(rows, both, splits_of(rows, both)));
    args.count = 1;
    args.dual = true;
    args.outputs[0].out = static_cast<In*>(product.out);
    args.outputs[0].out_stride = product.out_stride;
    runtime_.join_splits(args);
  }

  Runtime& runtime_;
  Workspace<Runtime>& arrays_;
  Activation activation_;
};

}  // namespace molae::cuda
