#include <algorithm>
#include <cstddef>
#include <span>
#include <utility>
#include <vector>

#include "cpu/linalg/blas.h"
#include "cpu/linalg/linalg.h"
#include "cpu/linear/linear_tile.h"
#include "cpu/linear/tile_list.h"
#include "cpu/simd/convert.h"
#include "cpu/system/compute_pool.h"
#include "cpu/system/processor.h"

namespace molae::cpu {
namespace {

// A problem in the precision it is computed in, and the part of C that one task computes.
template <class Real>
struct Product {
  const Real *a, *b;
  Real* c;
  int64_t m, n, k, lda, ldb;
  bool ta, tb;
  Real alpha, beta;

  void compute(int64_t row, int64_t rows, int64_t col, int64_t cols) const {
    const Real* a_part = a + (ta ? row : row * lda);
    const Real* b_part = b + (tb ? col * ldb : col);
    blas::gemm(ta, tb, rows, cols, k, alpha, a_part, lda, b_part, ldb, beta, c + row * n + col, n);
  }
};

struct Part {
  size_t product;
  int64_t row, rows, col, cols;
};

// Splits every C along its longer side, into as many parts as keep all threads busy: BLAS is most efficient on
// large pieces, so no more parts than needed.
template <class Real>
std::vector<Part> cut(const std::vector<Product<Real>>& products, int threads) {
  constexpr int64_t kSmallest = 32;
  const auto count = static_cast<int64_t>(products.size());
  const int64_t parts_wanted = count >= 4 * threads ? 1 : ceil_divide(threads, std::max<int64_t>(count, 1));
  std::vector<Part> cut_parts;
  for (size_t p = 0; p < products.size(); ++p) {
    const auto& [m, n] = std::pair(products[p].m, products[p].n);
    if (m == 0 || n == 0) continue;
    const bool by_rows = m >= n;
    const int64_t side = by_rows ? m : n;
    const int64_t parts = std::clamp<int64_t>(side / kSmallest, 1, parts_wanted);
    for (int64_t i = 0; i < parts; ++i) {
      const int64_t begin = side * i / parts;
      const int64_t length = side * (i + 1) / parts - begin;
      cut_parts.push_back(by_rows ? Part{p, begin, length, 0, n} : Part{p, 0, m, begin, length});
    }
  }
  return cut_parts;
}

template <class Real>
void run(int threads, const std::vector<Product<Real>>& products) {
  const std::vector<Part> parts = cut(products, threads);
  ComputePool::instance().parallel_for(threads, static_cast<int64_t>(parts.size()), [&](int64_t i, int) {
    const Part& part = parts[i];
    products[part.product].compute(part.row, part.rows, part.col, part.cols);
  });
}

template <class Real>
Product<Real> product_of(const Gemm& g, const Real* a, const Real* b, Real* c) {
  return {a,
          b,
          c,
          g.c.rows(),
          g.c.cols(),
          g.a.dim(g.transpose_a ? 0 : 1),
          std::max<int64_t>(g.a.cols(), 1),
          std::max<int64_t>(g.b.cols(), 1),
          g.transpose_a,
          g.transpose_b,
          static_cast<Real>(g.alpha),
          static_cast<Real>(g.beta)};
}

// Rows times weights [out, inner], as in a layer.
struct LinearProduct {
  const float* rows;
  const Tensor& weight;
  float* out;
  int64_t num_rows;
};

// Whether the kernels of layers compute it, which read weights where they are and in their own dtype: faster than BLAS
// but for f32 weights and many rows, and where there are no kernels for the processor.
bool is_linear(const Gemm& g) {
  const bool plain = !g.transpose_a && g.transpose_b && g.alpha == 1 && g.beta == 0;
  if (!plain || instructions() == Instructions::Plain || g.b.cols() == 0) return false;
  return is_half(g.b.dtype()) || (g.b.dtype() == DType::F32 && g.a.rows() <= kTileRows);
}

void run(Context context, const std::vector<LinearProduct>& products) {
  if (products.empty()) return;
  TileList tiles(tile_shape<Tensor>());
  int64_t inner = 0;
  for (size_t i = 0; i < products.size(); ++i) {
    const auto& [rows, weight, out, num_rows] = products[i];
    tiles.add(static_cast<int32_t>(i), num_rows, weight.rows(), weight.cols());
    inner = std::max(inner, weight.cols());
  }
  const int threads = tiles.cut(context.threads);
  const int64_t stride = tile_scratch<float>(inner);
  float* scratch = context.workspace.get<float>(kScratch, stride * threads);
  ComputePool::instance().parallel_for(threads, tiles.size(), [&](int64_t i, int participant) {
    const Tile& t = tiles[i];
    const auto& [rows, weight, out, num_rows] = products[t.problem];
    linear_tile<float>(Rows<float>{rows + t.row * weight.cols(), weight.cols()}, t.rows, weight, t.col, t.cols,
                       out + t.row * weight.rows() + t.col, weight.rows(), scratch + stride * participant);
  });
}

// Elements that become those of another dtype.
struct Conversion {
  DType from_dtype;
  const void* from;
  DType to_dtype;
  void* to;
  int64_t count;
};

void run(int threads, const std::vector<Conversion>& conversions) {
  constexpr int64_t kPiece = 1 << 15;  // elements; for no more than these nobody is woken
  struct Piece {
    const Conversion* conversion;
    int64_t begin;
  };
  std::vector<Piece> pieces;
  int64_t total = 0;
  for (const Conversion& c : conversions) {
    for (int64_t begin = 0; begin < c.count; begin += kPiece) pieces.push_back({&c, begin});
    total += c.count;
  }
  ComputePool::instance().parallel_for(
      total > kPiece ? threads : 1, static_cast<int64_t>(pieces.size()), [&](int64_t i, int) {
        const auto& [c, begin] = pieces[i];
        convert_elements(c->from_dtype, static_cast<const std::byte*>(c->from) + begin * item_size(c->from_dtype),
                         c->to_dtype, static_cast<std::byte*>(c->to) + begin * item_size(c->to_dtype),
                         std::min(kPiece, c->count - begin));
      });
}

// Products of halves: operands are widened to f32, weights of linear products only as they are read. Products and sums
// are f32, and C is rounded once.
class HalfProducts {
 public:
  // Floats that one product takes.
  static int64_t floats(const Gemm& g) {
    return g.a.elements() + (is_linear(g) ? 0 : g.b.elements()) + (is_half(g.c.dtype()) ? g.c.elements() : 0);
  }

  // Of as many floats as all products take.
  HalfProducts(Context context, float* room) : context_(context), room_(room) {}

  void add(const Gemm& g) {
    const float* a = widened(g.a);
    const bool narrow = is_half(g.c.dtype());
    float* c = narrow ? take(g.c) : g.c.as<float>();
    if (narrow) rounded_.push_back({DType::F32, c, g.c.dtype(), g.c.data(), static_cast<int64_t>(g.c.elements())});
    if (is_linear(g)) {
      linear_.push_back({a, g.b, c, g.a.rows()});
      return;
    }
    if (narrow && g.beta != 0) widen(g.c, c);
    singles_.push_back(product_of<float>(g, a, widened(g.b), c));
  }

  void compute() const {
    run(context_.threads, widened_);
    run(context_, linear_);
    run(context_.threads, singles_);
    run(context_.threads, rounded_);
  }

 private:
  float* take(const Tensor& tensor) { return std::exchange(room_, room_ + tensor.elements()); }
  void widen(const Tensor& from, float* to) {
    widened_.push_back({from.dtype(), from.data(), DType::F32, to, static_cast<int64_t>(from.elements())});
  }
  const float* widened(const Tensor& tensor) {
    float* to = take(tensor);
    widen(tensor, to);
    return to;
  }

  Context context_;
  float* room_;
  std::vector<Conversion> widened_, rounded_;
  std::vector<LinearProduct> linear_;
  std::vector<Product<float>> singles_;
};

// As many at a time as take little room, or one.
void run(Context context, std::span<const Gemm* const> halves) {
  constexpr int64_t kMostFloats = 1 << 22;
  for (size_t begin = 0; begin < halves.size();) {
    size_t end = begin;
    int64_t floats = 0;
    do {
      floats += HalfProducts::floats(*halves[end++]);
    } while (end < halves.size() && floats + HalfProducts::floats(*halves[end]) <= kMostFloats);
    HalfProducts products(context, context.workspace.get<float>(kOperandA, floats));
    for (; begin < end; ++begin) products.add(*halves[begin]);
    products.compute();
  }
}

}  // namespace

void gemm(Context context, std::span<const Gemm> problems) {
  std::vector<LinearProduct> linear;
  std::vector<Product<float>> singles;
  std::vector<Product<double>> doubles;
  std::vector<const Gemm*> halves;
  for (const Gemm& g : problems) {
    if (g.a.dtype() == DType::F32 && is_linear(g)) {
      linear.push_back({g.a.as<const float>(), g.b, g.c.as<float>(), g.a.rows()});
    } else if (g.a.dtype() == DType::F32) {
      singles.push_back(product_of(g, g.a.as<const float>(), g.b.as<const float>(), g.c.as<float>()));
    } else if (g.a.dtype() == DType::F64) {
      doubles.push_back(product_of(g, g.a.as<const double>(), g.b.as<const double>(), g.c.as<double>()));
    } else {
      halves.push_back(&g);
    }
  }
  run(context, linear);
  run(context.threads, singles);
  run(context.threads, doubles);
  run(context, halves);
}

}  // namespace molae::cpu
