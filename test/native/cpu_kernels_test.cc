#if defined(__linux__)
#include <sched.h>
#endif

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <numeric>
#include <thread>

#include "core/tensor/half.h"
#include "cpu/cpu_backend.h"
#include "cpu/layer/gating.h"
#include "cpu/linear/linear_tile.h"
#include "cpu/linear/stream_kernel.h"
#include "cpu/linear/tile_list.h"
#include "cpu/system/compute_pool.h"
#include "native/dot.h"
#include "native/tensors.h"

// The CPU's kernels on their own, against plain f64 loops.
namespace molae::test {
namespace {

using namespace cpu;

constexpr float kPoison = std::numeric_limits<float>::quiet_NaN();

// Rows picked from a matrix, a weight of which only some rows count, and a result inside a larger one.
struct Product {
  int64_t rows, inner, col, cols;
  std::vector<int32_t> index;
  std::vector<float> x;
  Values weight_values;
  Tensor weight;

  Product(Context& context, int64_t rows, int64_t inner, int64_t cols, DType dtype)
      : rows(rows), inner(inner), col(context.integer(0, 3)), cols(cols) {
    const int64_t source_rows = context.integer(1, 2 * rows);
    for (int64_t i = 0; i < rows; ++i) {
      index.push_back(static_cast<int32_t>(context.integer(0, source_rows - 1)));
    }
    for (int64_t i = 0; i < source_rows * inner; ++i) x.push_back(static_cast<float>(context.normal()));
    const int64_t weight_rows = col + cols + context.integer(0, 2);
    weight_values = random_values(context, weight_rows * inner, 1 / std::sqrt(static_cast<double>(inner)));
    weight = make_tensor(context, dtype, {weight_rows, inner}, weight_values);
  }

  Rows<float> input() const { return {x.data(), inner, index.data()}; }

  Values reference() const { return sums({x.begin(), x.end()}, weight_values); }

  // What the sums would be if nothing in them cancelled: the scale of their rounding errors. Weights in blocks are
  // multiplied from the least value of their block on, and what is too much is taken from the sums: there a weight
  // counts as the largest of its block.
  Values magnitudes() const {
    Values weights = absolute(weight_values);
    if (is_block(weight.dtype())) raise_to_largest_of_block(weights);
    return sums(absolute({x.begin(), x.end()}), weights);
  }

 private:
  static Values absolute(Values values) {
    for (double& value : values) value = std::abs(value);
    return values;
  }

  void raise_to_largest_of_block(Values& weights) const {
    const int64_t weight_rows = static_cast<int64_t>(weights.size()) / inner;
    for (int64_t row = 0; row < weight_rows; ++row) {
      for (int64_t begin = 0; begin < inner; begin += kBlock) {
        const auto first = weights.begin() + row * inner + begin, last = first + std::min(kBlock, inner - begin);
        std::fill(first, last, *std::max_element(first, last));
      }
    }
  }

  Values sums(const Values& inputs, const Values& weights) const {
    const int64_t last = *std::max_element(index.begin(), index.end());
    expect(static_cast<int64_t>(inputs.size()) >= (last + 1) * inner &&
               static_cast<int64_t>(weights.size()) >= (col + cols) * inner,
           "a reference of other sizes");
    Values out(rows * cols);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < cols; ++j) {
        out[i * cols + j] = dot(&inputs[index[i] * inner], &weights[(col + j) * inner], inner);
      }
    }
    return out;
  }
};

// Runs body(out, stride) on poisoned memory: all of the result is written, and nothing beside it.
template <class Body>
Values result_of(int64_t rows, int64_t cols, Body body) {
  const int64_t stride = cols + 3;
  std::vector<float> out(rows * stride + 8, kPoison);
  body(out.data(), stride);
  Values result;
  for (int64_t i = 0; i < static_cast<int64_t>(out.size()); ++i) {
    const bool inside = i / stride < rows && i % stride < cols;
    expect(inside != std::isnan(out[i]), inside ? "not written: " : "written: ", i / stride, ", ", i % stride, " of ",
           rows, " x ", cols);
    if (inside) result.push_back(out[i]);
  }
  return result;
}

// Each element, to the rounding errors of its sum: where few are compared, what cancels in them decides on a norm.
void expect_sums(const Values& actual, const Product& product) {
  const Values wanted = product.reference(), magnitudes = product.magnitudes();
  for (size_t i = 0; i < actual.size(); ++i) {
    const double error = std::abs(actual[i] - wanted[i]) / magnitudes[i];
    expect(error <= 1e-6, product.rows, " x ", product.cols, " of ", product.inner, ": element ", i, " is ", actual[i],
           ", wanted ", wanted[i], ": ", error, " of ", magnitudes[i]);
  }
}

struct Sizes {
  int64_t rows, inner, cols;
};

// Both ways through a tile, at the borders of panels, groups of columns and blocks, and anywhere.
std::vector<Sizes> tile_sizes(Context& context) {
  std::vector<Sizes> sizes = {{1, 1, 1},      {1, 31, 5},     {1, 37, 9},     {1, 704, 64},    {4, 33, 5},
                              {16, 256, 24},  {17, 256, 12},  {24, 1, 13},    {32, 512, 36},   {33, 513, 37},
                              {40, 257, 512}, {55, 1030, 85}, {73, 700, 253}, {100, 260, 170}, {256, 300, 31},
                              {3, 95, 9},     {7, 31, 4},     {12, 160, 11},  {66, 515, 97},   {130, 96, 40}};
  for (int i = 0; i < 12; ++i) {
    sizes.push_back({context.integer(1, 80), context.integer(1, 600), context.integer(1, 100)});
  }
  return sizes;
}

// Scratch of exactly the size asked for, poisoned.
std::vector<float> poisoned_scratch(int64_t inner) { return std::vector<float>(tile_scratch<float>(inner), kPoison); }

void expect_linear_tile(Context& cpu, const Sizes& sizes, DType dtype) {
  const auto& [rows, inner, cols] = sizes;
  const Product product(cpu, rows, inner, cols, dtype);
  std::vector<float> scratch = poisoned_scratch(inner);
  const Values actual = result_of(rows, cols, [&](float* out, int64_t stride) {
    linear_tile<float>(product.input(), product.rows, product.weight, product.col, product.cols, out, stride,
                       scratch.data());
  });
  expect_sums(actual, product);
}

MOLAE_TEST("cpu kernels: linear tiles of every dtype and odd sizes", Logic) {
  const auto backend = make_cpu_backend(1);
  Context cpu{*backend, context.random};
  for (const DType dtype : {DType::F32, DType::BF16, DType::F16, DType::Q8, DType::Q4}) {
    for (const Sizes& sizes : tile_sizes(cpu)) expect_linear_tile(cpu, sizes, dtype);
  }
}

// Every number of rows and, around it, of columns that passes take together; less than a pair of vectors of the inner
// size, one piece of it and several, with and without a rest.
MOLAE_TEST("cpu kernels: streamed weights, every number of rows", Logic) {
  const auto backend = make_cpu_backend(1);
  Context cpu{*backend, context.random};
  for (const DType dtype : {DType::F32, DType::BF16, DType::F16, DType::Q8, DType::Q4}) {
    for (int64_t rows = 1; rows <= kStreamRows + 1; ++rows) {
      for (const auto& [inner, cols] : {std::pair{31, 9}, {64, 24}, {768, 1}, {1031, 47}, {1600, 28}}) {
        expect_linear_tile(cpu, {rows, inner, cols}, dtype);
      }
    }
  }
}

// Whichever the processor at hand prefers.
MOLAE_TEST("cpu kernels: one row reads weights in runs and several columns at a time", Logic) {
  const auto backend = make_cpu_backend(1);
  Context cpu{*backend, context.random};
  for (const Reading reading : {Reading::Runs, Reading::Columns}) {
    for (const DType dtype : {DType::F32, DType::BF16, DType::F16}) {
      for (const auto& [inner, cols] :
           {std::pair{1, 1}, {31, 9}, {32, 8}, {64, 24}, {97, 25}, {768, 1}, {1031, 47}, {7168, 30}}) {
        const Product product(cpu, 1, inner, cols, dtype);
        std::vector<float> scratch(stream_scratch(inner), kPoison);
        expect_sums(result_of(1, cols,
                              [&](float* out, int64_t stride) {
                                stream_rows(product.input(), 1, product.weight, product.col, cols, out, stride,
                                            scratch.data(), reading);
                              }),
                    product);
      }
    }
  }
}

// As many vectors of rows as differ, and every number of rows beside them; one piece of the inner size and several, of
// weights that are read where they are and of weights that are copied.
MOLAE_TEST("cpu kernels: panels of vectors, every number of rows beside them", Logic) {
  const auto backend = make_cpu_backend(1);
  Context cpu{*backend, context.random};
  for (const DType dtype : {DType::F32, DType::BF16}) {
    for (int64_t rows = kStreamRows + 1; rows <= kStreamRows + 40; ++rows) {
      for (const auto& [inner, cols] : {std::pair{31, 9}, {544, 27}, {1024, 101}}) {
        expect_linear_tile(cpu, {rows, inner, cols}, dtype);
      }
    }
  }
}

// How columns are cut into tiles depends on the number of threads: it must not show.
MOLAE_TEST("cpu kernels: sums do not depend on the columns beside them", Logic) {
  const auto backend = make_cpu_backend(1);
  Context cpu{*backend, context.random};
  constexpr int64_t kCols = 59;
  for (const DType dtype : {DType::F32, DType::BF16, DType::F16, DType::Q8, DType::Q4}) {
    for (int64_t rows = 1; rows <= kStreamRows + 20; ++rows) {
      const int64_t inner = cpu.integer(1, 1500);
      const Product product(cpu, rows, inner, kCols, dtype);
      std::vector<float> scratch = poisoned_scratch(inner);
      const auto in_tiles = [&](int64_t width) {
        return result_of(rows, kCols, [&](float* out, int64_t stride) {
          for (int64_t col = 0; col < kCols; col += width) {
            linear_tile<float>(product.input(), rows, product.weight, product.col + col, std::min(width, kCols - col),
                               out + col, stride, scratch.data());
          }
        });
      };
      const Values whole = in_tiles(kCols);
      for (const int64_t width : {1, 7, 24}) expect(in_tiles(width) == whole, rows, " rows in tiles of ", width);
    }
  }
}

struct Packing {
  DType dtype;
  PackedInputs inputs;
};

constexpr Packing kPackings[] = {{DType::F32, PackedInputs::F32},
                                 {DType::BF16, PackedInputs::F32},
                                 {DType::F16, PackedInputs::F32},
                                 {DType::BF16, PackedInputs::BF16}};

// What a product multiplies.
void round_inputs(Product& product, PackedInputs inputs) {
  if (inputs == PackedInputs::F32 || product.weight.dtype() != DType::BF16) return;
  for (float& value : product.x) value = bf16_to_f32(f32_to_bf16(value));
}

// Tiles of packed weights end with a group of columns, or with the weight: all of its rows count.
Product packed_product(Context& cpu, int64_t rows, int64_t inner, int64_t cols, DType dtype) {
  Product product(cpu, rows, inner, cols, dtype);
  product.col = 0;
  product.weight_values.resize(cols * inner);
  product.weight = make_tensor(cpu, dtype, {cols, inner}, product.weight_values);
  return product;
}

PackedWeight packed_copy(Backend& backend, int threads, const Tensor& weight, PackedInputs inputs) {
  return {backend.allocate(PackedWeight::bytes_of(weight)), 0, threads, weight, inputs};
}

std::vector<float> packed_scratch_of() { return std::vector<float>(tile_scratch<float, PackedWeight>(0), kPoison); }

// Every number of rows of one pass and of a few, and tiles of many; last groups of one, two and three blocks, whole and
// not; one piece of the inner size and several, with an odd step.
MOLAE_TEST("cpu kernels: packed weights, every number of rows", Logic) {
  const auto backend = make_cpu_backend(2);
  Context cpu{*backend, context.random};
  std::vector<int64_t> counts = {64, 101, 256};
  for (int64_t rows = 1; rows <= 40; ++rows) counts.push_back(rows);
  for (const auto& [dtype, inputs] : kPackings) {
    for (const int64_t rows : counts) {
      for (const auto& [inner, cols] : {std::pair{1, 9}, {31, 16}, {257, 40}, {512, 48}, {1031, 99}, {36, 130}}) {
        Product product = packed_product(cpu, rows, inner, cols, dtype);
        const PackedWeight packed = packed_copy(*backend, 2, product.weight, inputs);
        std::vector<float> scratch = packed_scratch_of();
        const Values actual = result_of(rows, cols, [&, rows = rows, cols = cols](float* out, int64_t stride) {
          linear_tile<float>(product.input(), rows, packed, 0, cols, out, stride, scratch.data());
        });
        round_inputs(product, inputs);
        expect_sums(actual, product);
      }
    }
  }
}

MOLAE_TEST("cpu kernels: sums with packed weights do not depend on the columns beside them", Logic) {
  const auto backend = make_cpu_backend(1);
  Context cpu{*backend, context.random};
  constexpr int64_t kCols = 169;
  for (const auto& [dtype, inputs] : kPackings) {
    for (const int64_t rows : {int64_t{1}, int64_t{5}, int64_t{13}, cpu.integer(1, 100)}) {
      Product product = packed_product(cpu, rows, cpu.integer(1, 1500), kCols, dtype);
      const PackedWeight packed = packed_copy(*backend, 1, product.weight, inputs);
      std::vector<float> scratch = packed_scratch_of();
      const auto in_tiles = [&](int64_t width) {
        return result_of(rows, kCols, [&](float* out, int64_t stride) {
          for (int64_t col = 0; col < kCols; col += width) {
            linear_tile<float>(product.input(), rows, packed, col, std::min(width, kCols - col), out + col, stride,
                               scratch.data());
          }
        });
      };
      const Values whole = in_tiles(kCols);
      for (const int64_t width : {kGroupCols, 3 * kGroupCols})
        expect(in_tiles(width) == whole, rows, " rows in tiles of ", width);
    }
  }
}

// Each element, to the rounding errors of its two sums: a norm would not see small ones, nor know of cancellation.
void expect_gated(const Values& actual, const Product& gate, const Product& up, Activation activation) {
  const Values gates = gate.reference(), gate_magnitudes = gate.magnitudes();
  const Values ups = up.reference(), up_magnitudes = up.magnitudes();
  for (size_t i = 0; i < actual.size(); ++i) {
    const double wanted = activate(activation, gates[i]) * ups[i];
    const double magnitude = activate(activation, gate_magnitudes[i]) * up_magnitudes[i];
    const double error = std::abs(actual[i] - wanted) / magnitude;
    expect(error <= 1e-6, "gated tile: element ", i, " is ", actual[i], ", wanted ", wanted, ": ", error, " of ",
           magnitude);
  }
}

Tensor identity_matrix(Context& context, int64_t size) {
  Values values(size * size, 0);
  for (int64_t i = 0; i < size; ++i) values[i * size + i] = 1;
  return make_tensor(context, DType::F32, {size, size}, values);
}

MOLAE_TEST("cpu kernels: gated tiles, of the same and of other rows", Logic) {
  const auto backend = make_cpu_backend(1);
  Context cpu{*backend, context.random};
  for (const auto& [rows, inner, cols] : tile_sizes(cpu)) {
    const auto activation = static_cast<Activation>(cpu.integer(0, 3));
    const DType dtypes[] = {DType::F32, DType::BF16, DType::F16, DType::Q8, DType::Q4};
    const Product gate(cpu, rows, inner, cols, dtypes[cpu.integer(0, 4)]);
    Product up(cpu, rows, cpu.chance(0.5) ? inner : cpu.integer(1, 600), cols, dtypes[cpu.integer(0, 4)]);
    const bool same = up.inner == inner;
    if (same) {
      up.x = gate.x;
      up.index = gate.index;
    }
    up.col = 0;
    Product gate_at_0 = gate;
    gate_at_0.col = 0;
    std::vector<float> scratch = poisoned_scratch(std::max({inner, up.inner, cols}));
    // In whatever order they are, written in two parts; the identity makes rows of them.
    std::vector<float> values(hidden_elements<float>(rows, cols), kPoison);
    const Hidden<float> hidden{values.data(), cols};
    const int64_t first_cols = cpu.integer(0, cols);
    for (const auto& [col, count] : {std::pair(int64_t{0}, first_cols), std::pair(first_cols, cols - first_cols)}) {
      gated_tile<float>({gate.input(), gate.weight}, {same ? gate.input() : up.input(), up.weight}, activation, rows,
                        col, count, hidden, scratch.data());
    }
    const Tensor identity = identity_matrix(cpu, cols);
    const Values actual = result_of(rows, cols, [&, rows = rows, cols = cols](float* out, int64_t stride) {
      linear_tile<float>(hidden, rows, identity, 0, cols, out, stride, scratch.data());
    });
    expect_gated(actual, gate_at_0, up, activation);
  }
}

MOLAE_TEST("cpu kernels: gated tiles of packed weights", Logic) {
  const auto backend = make_cpu_backend(1);
  Context cpu{*backend, context.random};
  for (const auto& [rows, inner, cols] : tile_sizes(cpu)) {
    const auto activation = static_cast<Activation>(cpu.integer(0, 3));
    const Packing one = kPackings[cpu.integer(0, 3)], other = kPackings[cpu.integer(0, 3)];
    Product gate = packed_product(cpu, rows, inner, cols, one.dtype);
    Product up = packed_product(cpu, rows, cpu.integer(1, 600), cols, other.dtype);
    const PackedWeight packed_gate = packed_copy(*backend, 1, gate.weight, one.inputs);
    const PackedWeight packed_up = packed_copy(*backend, 1, up.weight, other.inputs);
    std::vector<float> scratch = packed_scratch_of();
    const int64_t first_cols = std::min(cols, cpu.integer(0, 3) * kGroupCols);
    const Values actual = result_of(rows, cols, [&, rows = rows, cols = cols](float* out, int64_t stride) {
      for (const auto& [col, count] : {std::pair(int64_t{0}, first_cols), std::pair(first_cols, cols - first_cols)}) {
        gated_tile<float, PackedWeight>({gate.input(), packed_gate}, {up.input(), packed_up}, activation, rows, col,
                                        count, {out, stride}, scratch.data());
      }
    });
    round_inputs(gate, one.inputs);
    round_inputs(up, other.inputs);
    expect_gated(actual, gate, up, activation);
  }
}

// Relative. In the tails of GELU the rounding of exp's argument, about x^2, is multiplied by that argument.
double bound_of(Activation activation, double x) {
  const bool gelu = activation == Activation::Gelu || activation == Activation::GeluTanh;
  return 4e-7 * (gelu ? 1 + x * x : 1);
}

MOLAE_TEST("cpu kernels: activations over the whole range of f32", Logic) {
  std::vector<float> values = {0.0f,   -0.0f,  1e-30f,  -1e-30f, 87.5f, -87.5f, 88.5f,  -88.5f, 88.3f,
                               -88.3f, 104.0f, -104.0f, 3e4f,    -3e4f, -1e9f,  -1e30f, -3e38f};
  for (int i = 0; i < 5000; ++i) values.push_back(static_cast<float>(context.normal() * (i % 2 == 0 ? 1 : 30)));
  for (const Activation activation : {Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu2}) {
    std::vector<float> gate = values;
    const std::vector<float> up(values.size(), 0.75f);
    gate_times_up(activation, gate.data(), up.data(), gate.data(), static_cast<int64_t>(gate.size()));
    for (size_t i = 0; i < values.size(); ++i) {
      const double wanted = activate(activation, static_cast<double>(values[i])) * 0.75;
      const double bound = bound_of(activation, values[i]) * std::abs(wanted) + 1e-30;
      expect(std::abs(gate[i] - wanted) <= bound, "activation of ", values[i], ": ", gate[i], ", wanted ", wanted);
    }
  }
  for (const Activation activation : {Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu2}) {
    float nan = kPoison;
    const float one = 1;
    gate_times_up(activation, &nan, &one, &nan, 1);
    expect(std::isnan(nan), "NaN went in, ", nan, " came out of activation ", static_cast<int>(activation));
  }
}

// Weights a power of two apart are copied, others are read where they are.
MOLAE_TEST("cpu kernels: f32 weights whose rows share a cache set", Logic) {
  const auto backend = make_cpu_backend(1);
  Context cpu{*backend, context.random};
  for (const int64_t inner : {1024, 1040, 2048}) {
    for (const int64_t rows : {13, 40, 60}) {
      const Product product(cpu, rows, inner, 29, DType::F32);
      std::vector<float> scratch = poisoned_scratch(inner);
      const Values actual = result_of(rows, 29, [&](float* out, int64_t stride) {
        linear_tile<float>(product.input(), product.rows, product.weight, product.col, product.cols, out, stride,
                           scratch.data());
      });
      expect_sums(actual, product);
    }
  }
}

MOLAE_TEST("cpu kernels: tiles cover every product once", Logic) {
  for (int round = 0; round < 100; ++round) {
    const bool packed = round % 2 == 1;
    TileList tiles(packed ? tile_shape<PackedWeight>() : tile_shape<Tensor>());
    std::vector<Sizes> problems;
    for (int64_t i = context.integer(0, 6); i > 0; --i) {
      problems.push_back({context.integer(0, context.chance(0.5) ? 20 : 700), 64, context.integer(1, 1500)});
    }
    for (size_t i = 0; i < problems.size(); ++i) {
      tiles.add(static_cast<int32_t>(i), problems[i].rows, problems[i].cols, problems[i].inner);
    }
    tiles.cut(static_cast<int>(context.integer(1, 64)));
    std::vector<std::vector<int>> seen;
    for (const Sizes& p : problems) seen.emplace_back(p.rows * p.cols, 0);
    for (int64_t t = 0; t < tiles.size(); ++t) {
      const Tile& tile = tiles[t];
      expect(tile.rows <= kTileRows && tile.cols <= kTileCols, "a tile of ", tile.rows, " x ", tile.cols);
      expect(!packed || tile.col % kPackedCols == 0, "a tile from column ", tile.col, " on");
      for (int64_t i = tile.row; i < tile.row + tile.rows; ++i) {
        for (int64_t j = tile.col; j < tile.col + tile.cols; ++j)
          ++seen[tile.problem][i * problems[tile.problem].cols + j];
      }
    }
    for (const auto& counts : seen) {
      for (const int count : counts) expect_equal(count, 1, "times an element is computed");
    }
  }
}

MOLAE_TEST("cpu kernels: eigenvectors do not depend on the number of threads", Logic) {
  for (const auto& [n, top] : {std::pair{140, 130}, {530, 70}, {1100, 300}}) {
    const Values x = random_values(context, n * n);
    std::vector<Values> seen;
    for (const int threads : {1, 2, 3}) {
      const auto backend = make_cpu_backend(threads);
      Context own{*backend, context.random};
      for (int again = 0; again < (threads == 1 ? 1 : 3); ++again) {
        Values values = x;
        const Tensor a = make_tensor(own, DType::F32, {n, n}, values);
        const Tensor lambda = poisoned(own, DType::F32, {n}), vectors = poisoned(own, DType::F32, {top, n});
        backend->eigh(a, lambda, vectors);
        seen.push_back(read(*backend, vectors));
        expect(seen.back() == seen.front(), "other eigenvectors of ", n, " x ", n, " with ", threads, " threads");
      }
    }
  }
}

MOLAE_TEST("cpu kernels: the pool runs every index once, and a failure ends the job alone", Logic) {
  ComputePool& pool = ComputePool::instance();
  const auto job = [&](int64_t count) {
    std::vector<std::atomic<int>> seen(count);
    pool.parallel_for(4, count, [&](int64_t i, int participant) {
      expect(participant >= 0 && participant < 4, "participant ", participant);
      ++seen[i];
    });
    for (int64_t i = 0; i < count; ++i) expect_equal(seen[i].load(), 1, "runs of index ", i, " of ", count);
  };
  std::vector<std::thread> callers;
  std::atomic<int> wrong{0};
  for (int t = 0; t < 3; ++t) {
    callers.emplace_back([&, t] {
      try {
        for (int round = 0; round < 300; ++round) job((round * 7 + t) % 90);
      } catch (const Failure&) {
        ++wrong;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  expect_equal(wrong.load(), 0, "callers whose jobs went wrong");
  for (int round = 0; round < 50; ++round) {
    expect_error(ErrorCode::Internal, "a failing body", [&] {
      pool.parallel_for(3, 40, [&](int64_t i, int) {
        if (i == round % 40) fail(ErrorCode::Internal, "index ", i);
      });
    });
    job(17);
  }
}

// More tasks of no work than a job can count.
MOLAE_TEST("cpu kernels: rows without elements are transposed in no time, however many", Logic) {
  const auto backend = make_cpu_backend(2);
  const int64_t many = int64_t{1} << 50;
  const Tensor tall = empty(*backend, DType::F32, {many, 0}), wide = empty(*backend, DType::F32, {0, many});
  backend->transpose(tall, wide);
  backend->transpose(wide, tall);
}

#if defined(__linux__)
MOLAE_TEST("cpu kernels: the pool's workers run elsewhere than the caller", Logic) {
  cpu_set_t usable;
  if (sched_getaffinity(0, sizeof usable, &usable) != 0 || CPU_COUNT(&usable) < 2) return;
  int compared = 0;
  for (int round = 0; round < 200; ++round) {
    std::vector<int> seen(64, -1);
    const int before = sched_getcpu();
    ComputePool::instance().parallel_for(2, static_cast<int64_t>(seen.size()), [&](int64_t i, int participant) {
      if (participant != 0) seen[i] = sched_getcpu();
      std::atomic<int> spins{0};  // long enough for others to take part
      while (spins.fetch_add(1) < 10'000) {
      }
    });
    if (sched_getcpu() != before) continue;  // the caller moved: nothing is promised until the next job
    for (const int processor : seen) {
      if (processor < 0) continue;
      expect(processor != before, "a worker shares processor ", before, " with the caller");
      ++compared;
    }
  }
  expect(compared > 0, "no worker ever took part");
}
#endif

}  // namespace
}  // namespace molae::test
