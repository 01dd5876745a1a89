#include <algorithm>
#include <type_traits>
#include <vector>

#include "core/checked.h"
#include "core/error.h"
#include "cpu/linalg/blas.h"
#include "cpu/linalg/linalg.h"
#include "cpu/simd/convert.h"
#include "cpu/simd/multiversion.h"
#include "cpu/system/compute_pool.h"

// What factorization needs beside general linear algebra.
namespace molae::cpu {
namespace {

// Products of halves are exact in f32; at most this many of them are summed in f32.
constexpr int64_t kGramChunk = 512;
// A tile of a Gram matrix's lower triangle. Its f64 sums stay in the cache while the chunks go by; there are tiles
// enough for all threads, as wide as may be (a product of more columns packs its rows less often), and few elements
// above the diagonal are summed in vain.
constexpr int64_t kLargestGramTile = 256, kSmallestGramTile = 64;

struct GramTile {
  int64_t row, rows, col, cols;
};

// The largest come first: what is left for the end is short.
std::vector<GramTile> gram_tiles(int64_t n) {
  int64_t size = kLargestGramTile;
  while (size > kSmallestGramTile && n < 4 * size) size /= 2;
  std::vector<GramTile> tiles;
  for (int64_t row = (n - 1) / size * size; row >= 0; row -= size) {
    const int64_t rows = std::min(size, n - row);
    for (int64_t col = 0; col < row + rows; col += kLargestGramTile) {
      tiles.push_back({row, rows, col, std::min(kLargestGramTile, row + rows - col)});
    }
  }
  return tiles;
}

// The most rows of a residual that one task computes.
constexpr int64_t kResidualRows = 192;

// The expert in the precision it is multiplied in: its own memory where it has that precision already.
template <class Real>
const Real* widened(Context context, Slot slot, const Tensor& w) {
  if (w.dtype() == (sizeof(Real) == 4 ? DType::F32 : DType::F64)) return w.as<const Real>();
  Real* wide = context.workspace.get<Real>(slot, w.elements());
  const int64_t row_length = w.rows() == 0 ? 0 : static_cast<int64_t>(w.elements()) / w.rows();
  ComputePool::instance().parallel_for(context.threads, w.rows(), [&](int64_t row, int) {
    widen_elements(w.dtype(), static_cast<const std::byte*>(w.data()) + row * row_length * item_size(w.dtype()),
                   wide + row * row_length, row_length);
  });
  return wide;
}

}  // namespace

template <class Real>
void add_gram(Context context, const Real* data, int64_t ld, int64_t inner, SharedSide side, const Tensor& gram) {
  const int64_t n = gram.rows();
  const std::vector<GramTile> tiles = gram_tiles(n);
  const auto multiply = [&](const GramTile& tile, int64_t begin, int64_t length, Real beta, Real* out, int64_t stride) {
    const bool by_rows = side == SharedSide::Input;
    const Real* part = data + (by_rows ? begin * ld : begin);
    const int64_t step = by_rows ? 1 : ld;
    blas::gemm(by_rows, !by_rows, tile.rows, tile.cols, length, Real(1), part + tile.row * step, ld,
               part + tile.col * step, ld, beta, out, stride);
  };
  const auto sums_of = [&](const GramTile& tile) { return gram.as<double>() + tile.row * n + tile.col; };
  ComputePool& pool = ComputePool::instance();
  const auto count = static_cast<int64_t>(tiles.size());
  if constexpr (std::is_same_v<Real, double>) {
    pool.parallel_for(context.threads, count,
                      [&](int64_t index, int) { multiply(tiles[index], 0, inner, 1, sums_of(tiles[index]), n); });
  } else {
    constexpr int64_t kElements = kLargestGramTile * kLargestGramTile;
    Real* scratch = context.workspace.get<Real>(kScratch, kElements * context.threads);
    pool.parallel_for(context.threads, count, [&](int64_t index, int participant) {
      const GramTile& tile = tiles[index];
      Real* block = scratch + kElements * participant;
      for (int64_t begin = 0; begin < inner; begin += kGramChunk) {
        multiply(tile, begin, std::min(kGramChunk, inner - begin), 0, block, tile.cols);
        for (int64_t i = 0; i < tile.rows; ++i) {
          double* sums = sums_of(tile) + i * n;
          for (int64_t j = 0; j < tile.cols; ++j) sums[j] += static_cast<double>(block[i * tile.cols + j]);
        }
      }
    });
  }
}

template void add_gram(Context, const float*, int64_t, int64_t, SharedSide, const Tensor&);
template void add_gram(Context, const double*, int64_t, int64_t, SharedSide, const Tensor&);

namespace {

template <class Real>
void accumulate_gram_in(Context context, const Tensor& w, SharedSide side, const Tensor& gram) {
  add_gram(context, widened<Real>(context, kOperandA, w), w.cols(), side == SharedSide::Input ? w.rows() : w.cols(),
           side, gram);
}

// Eight running sums: vectorizable without leave to reorder, and less rounding than one.
template <class Real>
__attribute__((always_inline)) inline double sum_of_squares_in_lanes(const Real* x, int64_t count) {
  double sums[8] = {};
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    for (int lane = 0; lane < 8; ++lane) {
      const double value = static_cast<double>(x[i + lane]);
      sums[lane] += value * value;
    }
  }
  for (; i < count; ++i) sums[0] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

MOLAE_MULTIVERSION double sum_of_squares(const float* x, int64_t count) { return sum_of_squares_in_lanes(x, count); }
MOLAE_MULTIVERSION double sum_of_squares(const double* x, int64_t count) { return sum_of_squares_in_lanes(x, count); }

// Sums task results in task order, so that the result does not depend on the number of threads.
double sum_in_order(const std::vector<double>& parts) {
  double sum = 0;
  for (double part : parts) sum += part;
  return sum;
}

template <class Real>
double squared_residual_in(Context context, const Tensor& w, const Tensor& a, const Tensor& b) {
  const Real* left = widened<Real>(context, kOperandA, a);
  const Real* right = widened<Real>(context, kOperandB, b);
  const int64_t cols = w.cols();
  const int64_t r = a.cols();
  // An even number of equal tasks. They depend on the rows alone: so does the sum, then.
  const int64_t tasks = 2 * ceil_divide(w.rows(), 2 * kResidualRows);
  const int64_t most = tasks == 0 ? 0 : ceil_divide(w.rows(), tasks);
  Real* scratch = context.workspace.get<Real>(kScratch, most * cols * context.threads);
  std::vector<double> parts(tasks);
  ComputePool::instance().parallel_for(context.threads, tasks, [&](int64_t task, int participant) {
    const int64_t row = w.rows() * task / tasks;
    const int64_t rows = w.rows() * (task + 1) / tasks - row;
    Real* residual = scratch + most * cols * participant;
    widen_elements(w.dtype(), static_cast<const std::byte*>(w.data()) + row * cols * item_size(w.dtype()), residual,
                   rows * cols);
    blas::gemm(false, false, rows, cols, r, Real(-1), left + row * r, r, right, cols, Real(1), residual, cols);
    parts[task] = sum_of_squares(residual, rows * cols);
  });
  return sum_in_order(parts);
}

template <class Item>
void transpose_items(Context context, const Item* from, Item* to, int64_t rows, int64_t cols) {
  constexpr int64_t kBlock = 32;
  ComputePool::instance().for_ranges(context.threads, rows, kBlock, [&](int64_t row, int64_t row_end, int) {
    for (int64_t col = 0; col < cols; col += kBlock) {
      const int64_t col_end = std::min(cols, col + kBlock);
      for (int64_t j = col; j < col_end; ++j) {
        for (int64_t i = row; i < row_end; ++i) to[j * rows + i] = from[i * cols + j];
      }
    }
  });
}

// The sign bit is the topmost one in every floating format.
template <class Bits>
void signed_permutation_items(const Bits* w, Bits* out, int64_t rows, int64_t cols, SharedSide side,
                              std::span<const int32_t> source, std::span<const int8_t> signs) {
  constexpr Bits kSign = Bits(1) << (8 * sizeof(Bits) - 1);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) {
      const bool by_column = side == SharedSide::Input;
      const Bits value = by_column ? w[i * cols + source[j]] : w[source[i] * cols + j];
      out[i * cols + j] = signs[by_column ? j : i] < 0 ? value ^ kSign : value;
    }
  }
}

// Calls visit with a pointer type as wide as the dtype.
template <class Visit>
void by_width(DType dtype, Visit visit) {
  switch (item_size(dtype)) {
    case 2:
      return visit(uint16_t{});
    case 4:
      return visit(uint32_t{});
    default:
      return visit(uint64_t{});
  }
}

}  // namespace

void accumulate_gram(Context context, const Tensor& w, SharedSide side, const Tensor& gram) {
  if (is_half(w.dtype())) {
    accumulate_gram_in<float>(context, w, side, gram);
  } else {
    accumulate_gram_in<double>(context, w, side, gram);
  }
}

double squared_norm(Context context, const Tensor& w) {
  constexpr int64_t kTask = 1 << 16;
  const auto count = static_cast<int64_t>(w.elements());
  std::vector<double> parts(ceil_divide(count, kTask));
  double* scratch = context.workspace.get<double>(kScratch, kTask * context.threads);
  ComputePool::instance().for_ranges(context.threads, count, kTask, [&](int64_t begin, int64_t end, int participant) {
    const int64_t length = end - begin;
    double* wide = scratch + kTask * participant;
    widen_elements(w.dtype(), static_cast<const std::byte*>(w.data()) + begin * item_size(w.dtype()), wide, length);
    parts[begin / kTask] = sum_of_squares(wide, length);
  });
  return sum_in_order(parts);
}

double squared_residual(Context context, const Tensor& w, const Tensor& a, const Tensor& b, DType compute) {
  if (compute == DType::F32) return squared_residual_in<float>(context, w, a, b);
  return squared_residual_in<double>(context, w, a, b);
}

void transpose(Context context, const Tensor& from, const Tensor& to) {
  if (from.elements() == 0) return;  // any number of rows of nothing
  by_width(from.dtype(), [&](auto bits) {
    transpose_items(context, from.as<const decltype(bits)>(), to.as<decltype(bits)>(), from.rows(), from.cols());
  });
}

void signed_permutation(const Tensor& w, SharedSide side, std::span<const int32_t> source,
                        std::span<const int8_t> signs, const Tensor& out) {
  by_width(w.dtype(), [&](auto bits) {
    signed_permutation_items(w.as<const decltype(bits)>(), out.as<decltype(bits)>(), w.rows(), w.cols(), side, source,
                             signs);
  });
}

}  // namespace molae::cpu
