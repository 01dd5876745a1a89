#include <algorithm>
#include <cmath>
#include <cstring>

#include "cuda/config/tile_request.h"
#include "native/cuda/host_runtime.h"
#include "native/tensors.h"

// The streaming kernel of decode: the kernel's own source against plain f64 loops.
namespace molae::test {
namespace {

using namespace cuda;

// Random problems of up to 4 rows, or none, in the form that the kernel takes them, and the results that it must have.
template <class In>
class RandomStream {
 public:
  using Wide = Sum<In>;

  // count: products side by side. split: wide sums in parts, else whole ones, wide or rounded.
  RandomStream(Context& context, int32_t count, bool dual, bool split) : context_(context), dual_(dual) {
    make_rows();
    args_.count = count;
    args_.dual = dual;
    args_.row_tiles = static_cast<int64_t>(tiles_.size());
    args_.splits = split ? static_cast<int32_t>(context.integer(2, 5)) : 1;
    wide_ = split || (!dual && context.chance(0.5));
    for (int32_t i = 0; i < count; ++i) {
      make_columns(i);
      first_[i] = make_factor(i);
    }
    if (dual) second_ = make_factor(0);
    stride_ = rounded_up(args_.max_columns) + 8 * context.integer(0, 2);
    args_.plane = (rows_ + 1) * stride_;
    for (int32_t i = 0; i < count; ++i) {
      out_[i] = HostMemory(args_.splits * args_.plane * (wide_ ? sizeof(Wide) : sizeof(In)));
      args_.products[i] = {described(first_[i]), {}, tiles_.data(), Activation::Silu, wide_, out_[i].as(), stride_};
    }
    args_.products[0].activation = static_cast<Activation>(context.integer(0, 3));
    if (dual) args_.products[0].second = described(second_);
  }

  const StreamedGemm<In>& args() const { return args_; }

  // All that was written, to be compared bit by bit.
  std::vector<double> everything() const {
    std::vector<double> values;
    for (int32_t i = 0; i < args_.count; ++i) {
      for (int64_t at = 0; at < args_.splits * args_.plane; ++at) values.push_back(element(i, at));
    }
    return values;
  }

  void check(const std::string& what) const {
    for (int32_t i = 0; i < args_.count; ++i) {
      for (size_t p = 0; p + 1 < begin_.size(); ++p) {
        for (int32_t row = begin_[p]; row < begin_[p + 1]; ++row) check_row(what, i, p, row);
      }
      for (int32_t split = 0; split < args_.splits; ++split) check_untouched(what, i, split, rows_, 0);
    }
  }

 private:
  struct RandomFactor {
    std::vector<int32_t> inner;  // by problem
    std::vector<Values> values;  // of the weights
    std::vector<std::vector<char>> data;
    std::vector<Weight> table;
    int64_t stride;
    std::vector<In> input;
    std::vector<int32_t> gather;
  };

  void make_rows() {
    const int64_t problems = context_.integer(1, 4);
    begin_.push_back(0);
    for (int32_t p = 0; p < problems; ++p) {
      const auto rows = static_cast<int32_t>(context_.integer(0, kStreamRows));
      if (rows > 0) tiles_.push_back({p, rows_, rows_ + rows});
      rows_ += rows;
      begin_.push_back(rows_);
    }
    for (int64_t i = context_.integer(0, 2); i > 0; --i) tiles_.push_back({-1, 0, 0});
  }

  void make_columns(int32_t product) {
    for (size_t p = 0; p + 1 < begin_.size(); ++p) {
      columns_[product].push_back(static_cast<int32_t>(context_.integer(1, context_.chance(0.5) ? 20 : 70)));
      args_.max_columns = std::max<int64_t>(args_.max_columns, columns_[product].back());
    }
  }

  // Layers whose matrices have several dtypes compute in f32.
  DType weight_dtype() {
    constexpr DType own = DTypeOf<In>::value;
    return own == DType::F32 && context_.chance(0.5) ? kFloats[context_.integer(0, 3)] : own;
  }

  RandomFactor make_factor(int32_t product) {
    RandomFactor factor;
    const int64_t unit = context_.chance(0.6) ? 8 : 1;
    for (const int32_t columns : columns_[product]) {
      const int64_t inner = unit * context_.integer(1, (context_.chance(0.3) ? 1500 : 70) / unit);
      factor.inner.push_back(static_cast<int32_t>(inner));
      factor.values.push_back(random_values(context_, columns * inner, 1 / std::sqrt(static_cast<double>(inner))));
      const Tensor tensor = make_tensor(context_, weight_dtype(), {columns, inner}, factor.values.back());
      // Some begin within a vector of 16 bytes, as tensors of a file may.
      const size_t offset = context_.chance(0.3) ? item_size(tensor.dtype()) : 0;
      factor.data.emplace_back(offset + tensor.bytes());
      char* data = factor.data.back().data() + offset;
      std::memcpy(data, tensor.data(), tensor.bytes());
      factor.table.push_back({data, columns, factor.inner.back(), tensor.dtype()});
    }
    const int32_t most = *std::max_element(factor.inner.begin(), factor.inner.end());
    factor.stride = most + (context_.chance(0.5) ? 0 : context_.integer(0, 9));
    const bool gathered = context_.chance(0.6);
    const int64_t input_rows = gathered ? context_.integer(1, 4) : std::max(1, rows_);
    factor.input.resize(input_rows * factor.stride);
    std::memset(static_cast<void*>(factor.input.data()), 0xff,
                factor.input.size() * sizeof(In));  // NaN beyond the inner size
    for (int64_t row = 0; row < input_rows; ++row) {
      for (int32_t k = 0; k < most; ++k) factor.input[row * factor.stride + k] = convert<In>(context_.normal());
    }
    for (int32_t row = 0; gathered && row < rows_; ++row) {
      factor.gather.push_back(static_cast<int32_t>(context_.integer(0, input_rows - 1)));
    }
    return factor;
  }

  Factor<In> described(const RandomFactor& factor) const {
    return {factor.input.data(), factor.stride, factor.gather.empty() ? nullptr : factor.gather.data(),
            factor.table.data(), nullptr};
  }

  double element(int32_t product, int64_t at) const {
    if (wide_) return static_cast<double>(out_[product].template as<Wide>()[at]);
    return convert<double>(out_[product].template as<In>()[at]);
  }

  double sum(const RandomFactor& factor, size_t p, int32_t row, int32_t column) const {
    const int64_t input = factor.gather.empty() ? row : factor.gather[row];
    double sum = 0;
    for (int32_t k = 0; k < factor.inner[p]; ++k) {
      sum += convert<double>(factor.input[input * factor.stride + k]) *
             factor.values[p][static_cast<int64_t>(column) * factor.inner[p] + k];
    }
    return sum;
  }

  void check_row(const std::string& what, int32_t product, size_t p, int32_t row) const {
    const double rounding = wide_                               ? 0
                            : DTypeOf<In>::value == DType::BF16 ? 0x1p-8
                            : DTypeOf<In>::value == DType::F16  ? 0x1p-11
                                                                : 0;
    const double precision = DTypeOf<In>::value == DType::F64 ? 1e-12 : 2e-5;
    for (int32_t column = 0; column < columns_[product][p]; ++column) {
      double wanted = sum(first_[product], p, row, column);
      if (dual_) wanted = activated(args_.products[0].activation, wanted) * sum(second_, p, row, column);
      double actual = 0;
      for (int32_t split = 0; split < args_.splits; ++split) {
        actual += element(product, split * args_.plane + row * stride_ + column);
      }
      expect(std::abs(actual - wanted) <= rounding * std::abs(wanted) + precision * (1 + std::abs(wanted)), what,
             ": product ", product, ", row ", row, ", column ", column, " is ", actual, ", wanted ", wanted);
    }
    for (int32_t split = 0; split < args_.splits; ++split) {
      check_untouched(what, product, split, row, columns_[product][p]);
    }
  }

  void check_untouched(const std::string& what, int32_t product, int32_t split, int64_t row, int64_t from) const {
    for (int64_t column = from; column < stride_; ++column) {
      expect(std::isnan(element(product, split * args_.plane + row * stride_ + column)), what, ": wrote to row ", row,
             " at ", column, ", where nothing belongs");
    }
  }

  Context& context_;
  bool dual_, wide_;
  int32_t rows_ = 0;
  int64_t stride_ = 0;
  std::vector<int32_t> begin_, columns_[2];
  std::vector<RowTile> tiles_;
  RandomFactor first_[2], second_;
  HostMemory out_[2];
  StreamedGemm<In> args_{};
};

template <class In>
void check_streams(Context& context, int rounds) {
  for (int round = 0; round < rounds; ++round) {
    const bool dual = context.chance(0.4), split = !dual && context.chance(0.5);
    const int32_t count = dual ? 1 : static_cast<int32_t>(context.integer(1, 2));
    const RandomStream<In> product(context, count, dual, split);
    const std::string what = std::string(dual    ? "dual"
                                         : split ? "split"
                                                 : "whole") +
                             " of " + std::string(dtype_name(DTypeOf<In>::value)) + ", " + std::to_string(count);
    stream_on_host(product.args(), ThreadOrder::Backwards);
    const std::vector<double> backwards = product.everything();
    stream_on_host(product.args());
    product.check(what);
    const std::vector<double> forwards = product.everything();
    expect(std::memcmp(forwards.data(), backwards.data(), forwards.size() * sizeof(double)) == 0, what,
           ": depends on the order of threads");
  }
}

MOLAE_TEST("stream: random products of every dtype, dual, split and side by side", Logic) {
  check_streams<BF16>(context, 60);
  check_streams<F16>(context, 60);
  check_streams<float>(context, 120);
  check_streams<double>(context, 60);
}

MOLAE_TEST("stream: the parts of an inner dimension are all of it once, and begin at whole vectors", Logic) {
  for (int round = 0; round < 500; ++round) {
    const auto inner = static_cast<int32_t>(context.chance(0.1) ? kMaxCount : context.integer(0, 9000));
    const auto splits = static_cast<int32_t>(context.integer(1, 64));
    int32_t at = 0;
    for (int32_t split = 0; split < splits; ++split) {
      const InnerRange range = split_range(inner, split, splits);
      expect_equal(range.begin, at, "part ", split, " of ", splits, " of ", inner);
      expect(range.end >= range.begin, "a part that ends before it begins");
      expect(range.begin % kSplitUnit == 0 || range.begin == inner, "a part that begins within a vector");
      at = range.end;
    }
    expect_equal(at, inner, "the end");
  }
}

template <class In>
void check_joins(Context& context, bool dual) {
  const int32_t columns[] = {static_cast<int32_t>(context.integer(1, 300)),
                             static_cast<int32_t>(context.integer(1, 40))};
  const Weight weights[] = {{nullptr, columns[0], 0, DType::F32}, {nullptr, columns[1], 0, DType::F32}};
  const RowTile tiles[] = {{0, 0, 3}, {1, 3, 4}, {-1, 0, 0}};
  const int64_t stride = rounded_up(300), plane = 5 * stride, splits = context.integer(1, 4);
  std::vector<Sum<In>> sums[2];
  HostMemory out(plane * sizeof(In));
  JoinSplits<In> args{tiles, {}, 1, dual, static_cast<Activation>(context.integer(0, 3)), 3, 300};
  for (int i = 0; i < 2; ++i) {
    for (int64_t at = 0; at < splits * plane; ++at) sums[i].push_back(static_cast<Sum<In>>(context.normal()));
    args.outputs[i] = {{sums[i].data(), stride, plane, static_cast<int32_t>(splits)}, weights, out.as<In>(), stride};
  }
  join_on_host(args);
  for (int64_t row = 0; row < 5; ++row) {
    for (int64_t column = 0; column < stride; ++column) {
      const double actual = convert<double>(out.as<In>()[row * stride + column]);
      if (row == 4 || column >= columns[row == 3]) {
        expect(std::isnan(actual), "wrote beyond the columns of row ", row);
        continue;
      }
      Sum<In> wanted[2] = {0, 0};
      for (int i = 0; i < 2; ++i) {
        for (int64_t split = 0; split < splits; ++split) {
          const Sum<In> part = sums[i][split * plane + row * stride + column];
          wanted[i] = split == 0 ? part : wanted[i] + part;
        }
      }
      const Sum<In> value = dual ? activated(args.activation, wanted[0]) * wanted[1] : wanted[0];
      expect_equal(actual, convert<double>(convert<In>(value)), "row ", row, ", column ", column);
    }
  }
}

MOLAE_TEST("stream: split sums are joined in their order, to the bit", Logic) {
  for (int round = 0; round < 10; ++round) {
    check_joins<BF16>(context, context.chance(0.5));
    check_joins<F16>(context, context.chance(0.5));
    check_joins<float>(context, context.chance(0.5));
    check_joins<double>(context, context.chance(0.5));
  }
}

MOLAE_TEST("stream: which layers take the streaming kernel, and in how many parts", Logic) {
  const TileRequest mma{TileFamily::Mma, {}}, hopper{TileFamily::Hopper, {}};
  const auto named = [](const char* name) { return parse_tile_request(name, false, "a GPU"); };
  const auto streams = [](DType dtype, int64_t tokens, int64_t top_k, const TileRequest& request) {
    const LayerTiles tiles = choose_tiles(dtype, {tokens, top_k, 64, 4}, request);
    const bool streamed = tiles.experts == GemmTile::Stream;
    for (const GemmTile tile : {tiles.groups, tiles.tokens}) {
      expect_equal(tile == GemmTile::Stream, streamed, "all of a layer's products, of ", tokens, " tokens");
    }
    return streamed;
  };
  for (const DType dtype : kFloats) {
    for (const int64_t tokens : {1, 2, 3, 4}) {
      for (const int64_t top_k : {1, 8}) {
        expect(streams(dtype, tokens, top_k, mma), tokens, " tokens");
        expect(streams(dtype, tokens, top_k, hopper), tokens, " tokens");
      }
    }
    expect(!streams(dtype, 5, 8, mma), "5 tokens");
    expect(streams(dtype, 5000, 8, named("stream")), "by name");
  }
  expect(!streams(DType::BF16, 1, 8, named("small")), "another one by name");
  expect_equal(choose_splits(0, 4096, 132), 1, "no blocks");
  expect_equal(choose_splits(2000, 4096, 132), 1, "blocks enough");
  expect_equal(choose_splits(44, 2048, 132), 4, "one group of 704 columns, by the least size of a part");
  expect_equal(choose_splits(176, 1408, 132), 2, "four experts of 704 columns");
  expect_equal(choose_splits(1, 300, 132), 1, "too short to be cut");
  expect_equal(choose_splits(1, 1 << 20, 1000), 64, "the most");
}

}  // namespace
}  // namespace molae::test
