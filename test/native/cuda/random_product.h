#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "cuda/config/tile_choice.h"
#include "cuda/logic/hopper/passes.h"
#include "native/cuda/host_runtime.h"
#include "native/tensors.h"

namespace molae::test {

template <class In>
In narrow_to(double value) {
  return cuda::FromFloat<In>::of(static_cast<float>(value));
}

// Random problems in the form that the kernel takes them, and the result that it must have.
template <class In>
class RandomProduct {
 public:
  RandomProduct(Context& context, cuda::GemmTile tile, bool dual, bool shared_tokens)
      : context_(context), dual_(dual), wide_(!dual && context.chance(0.5)) {
    make_rows(cuda::tile_rows(tile));
    first_ = make_factor();
    args_.product.first = described(first_, first_.weights);
    if (shared_tokens) {
      second_ = first_;
      second_.weights = make_weights();
      args_.product.second = described(first_, second_.weights);
    } else if (dual) {
      second_ = make_factor();
      args_.product.second = described(second_, second_.weights);
    }
    args_.product.tiles = tiles_.data();
    args_.product.activation = static_cast<Activation>(context.integer(0, 3));
    args_.product.wide = wide_;
    args_.product.out_stride = cuda::rounded_up(max_columns_) + 8 * context.integer(0, 2);
    const size_t bytes = (rows_ + 1) * args_.product.out_stride * (wide_ ? sizeof(float) : sizeof(In));
    out_ = HostMemory(bytes);
    args_.product.out = out_.as();
    args_.row_tiles = static_cast<int64_t>(tiles_.size());
    args_.max_columns = max_columns_;
    args_.dual = dual;
  }

  const cuda::hopper::HopperGemm<In>& args() const { return args_; }

  // What the kernel before this one writes: the product's input, and which rows of it. Hidden: as if that kernel had
  // not run.
  void hide() {
    for (RandomFactor* factor : {&first_, &second_}) {
      factor->hidden_input.assign(factor->input.size(), In{0xffff});
      factor->hidden_gather.assign(factor->gather.size(), 0);
    }
    show();
  }
  void show() {
    for (RandomFactor* factor : {&first_, &second_}) {
      std::swap_ranges(factor->input.begin(), factor->input.end(), factor->hidden_input.begin());
      std::swap_ranges(factor->gather.begin(), factor->gather.end(), factor->hidden_gather.begin());
    }
  }
  bool has_tiles() const { return rows_ > 0; }

  void check(const std::string& what) const {
    Values actual, wanted;
    for (size_t p = 0; p < columns_.size(); ++p) {
      for (int32_t row = begin_[p]; row < begin_[p + 1]; ++row) {
        for (int32_t column = 0; column < columns_[p]; ++column) {
          actual.push_back(result(row, column));
          const double value = sum(first_, p, row, column);
          wanted.push_back(dual_ ? cuda::activated(args_.product.activation, value) * sum(second_, p, row, column)
                                 : value);
        }
        for (int64_t column = columns_[p]; column < args_.product.out_stride; ++column) {
          expect(std::isnan(result(row, column)), what, ": wrote beyond the columns of row ", row);
        }
      }
    }
    for (int64_t column = 0; column < args_.product.out_stride; ++column) {
      expect(std::isnan(result(rows_, column)), what, ": wrote beyond the last row");
    }
    // Element by element: one that is in the wrong place would not show in a norm.
    const double relative = wide_ ? 2e-5 : cuda::DTypeOf<In>::value == DType::BF16 ? 0x1p-8 : 0x1p-10;
    for (size_t i = 0; i < wanted.size(); ++i) {
      const double error = std::abs(actual[i] - wanted[i]);
      expect(error <= relative * std::abs(wanted[i]) + 2e-5, what, ": element ", i, " is ", actual[i], ", wanted ",
             wanted[i]);
    }
  }

 private:
  struct Weights {
    std::vector<std::vector<In>> data;  // by problem [columns, inner]
    std::vector<cuda::Weight> table;
    std::vector<cuda::WeightMap> maps;
  };
  struct RandomFactor {
    std::vector<int32_t> inner;  // by problem
    int64_t stride;
    std::vector<In> input;  // [.., stride], NaN beyond the inner size
    std::vector<int32_t> gather;
    Weights weights;
    std::vector<In> hidden_input;
    std::vector<int32_t> hidden_gather;
  };

  void make_rows(int32_t tile_rows) {
    const int64_t problems = context_.integer(1, 4);
    begin_.push_back(0);
    for (int64_t p = 0; p < problems; ++p) {
      const int64_t few = context_.integer(0, 5), more = context_.integer(0, tile_rows + tile_rows / 2);
      const auto rows = static_cast<int32_t>(context_.chance(0.3) ? few : context_.chance(0.1) ? tile_rows : more);
      columns_.push_back(static_cast<int32_t>(context_.integer(1, context_.chance(0.3) ? 20 : 300)));
      max_columns_ = std::max<int64_t>(max_columns_, columns_.back());
      for (int32_t at = 0; at < rows; at += tile_rows) {
        tiles_.push_back({static_cast<int32_t>(p), rows_ + at, rows_ + std::min(rows, at + tile_rows)});
      }
      rows_ += rows;
      begin_.push_back(rows_);
    }
    for (int64_t i = context_.integer(0, 2); i > 0; --i) tiles_.push_back({-1, 0, 0});
    inner_.resize(problems);
  }

  Weights make_weights() {
    Weights weights;
    for (size_t p = 0; p < columns_.size(); ++p) {
      std::vector<In> data(static_cast<size_t>(columns_[p]) * inner_[p]);
      const double scale = 1 / std::sqrt(static_cast<double>(inner_[p]));
      for (In& value : data) value = narrow_to<In>(context_.normal() * scale);
      weights.data.push_back(std::move(data));
      const void* at = weights.data.back().data();
      weights.table.push_back({at, columns_[p], inner_[p], cuda::DTypeOf<In>::value});
      expect(cuda::hopper::has_weight_map(cuda::DTypeOf<In>::value, at, columns_[p], inner_[p]), "a map");
      weights.maps.push_back(
          encode_on_host(cuda::hopper::weight_map_arguments(cuda::DTypeOf<In>::value, at, columns_[p], inner_[p])));
    }
    return weights;
  }

  RandomFactor make_factor() {
    RandomFactor factor;
    for (int32_t& inner : inner_) inner = static_cast<int32_t>(8 * context_.integer(1, context_.chance(0.3) ? 2 : 50));
    factor.inner = inner_;
    factor.stride = *std::max_element(inner_.begin(), inner_.end()) + 8 * context_.integer(0, 2);
    const bool gathered = context_.chance(0.6);
    const int64_t input_rows = gathered ? context_.integer(1, 40) : std::max(1, rows_);
    factor.input.assign(input_rows * factor.stride, In{0xffff});
    const int32_t most = *std::max_element(inner_.begin(), inner_.end());
    for (int64_t row = 0; row < input_rows; ++row) {
      for (int32_t k = 0; k < most; ++k) factor.input[row * factor.stride + k] = narrow_to<In>(context_.normal());
    }
    for (int32_t row = 0; gathered && row < rows_; ++row) {
      factor.gather.push_back(static_cast<int32_t>(context_.integer(0, input_rows - 1)));
    }
    factor.weights = make_weights();
    return factor;
  }

  cuda::Factor<In> described(const RandomFactor& factor, const Weights& weights) const {
    return {factor.input.data(), factor.stride, factor.gather.empty() ? nullptr : factor.gather.data(),
            weights.table.data(), weights.maps.data()};
  }

  double result(int64_t row, int64_t column) const {
    const int64_t at = row * args_.product.out_stride + column;
    return wide_ ? out_.as<const float>()[at] : cuda::to_float(out_.as<const In>()[at]);
  }

  double sum(const RandomFactor& factor, size_t p, int32_t row, int32_t column) const {
    const int64_t input = factor.gather.empty() ? row : factor.gather[row];
    double sum = 0;
    for (int32_t k = 0; k < factor.inner[p]; ++k) {
      sum += static_cast<double>(cuda::to_float(factor.input[input * factor.stride + k])) *
             cuda::to_float(factor.weights.data[p][static_cast<int64_t>(column) * factor.inner[p] + k]);
    }
    return sum;
  }

  Context& context_;
  bool dual_, wide_;
  int32_t rows_ = 0;
  int64_t max_columns_ = 0;
  std::vector<int32_t> begin_, columns_, inner_;
  std::vector<cuda::RowTile> tiles_;
  RandomFactor first_, second_;
  HostMemory out_;
  cuda::hopper::HopperGemm<In> args_{};
};

}  // namespace molae::test
