#include "cpu/linalg/tridiagonal.h"

#include <algorithm>
#include <cmath>

#include "cpu/linalg/blas.h"
#include "cpu/linalg/lapack.h"
#include "cpu/simd/multiversion.h"
#include "cpu/simd/vectors.h"
#include "cpu/system/compute_pool.h"

namespace molae::cpu {
namespace {

// Reflections that are applied together.
constexpr int64_t kPanel = 32;
// What is left of the matrix below this order LAPACK reduces on one thread: it fits a cache, and threads would wait for
// each other more than they compute.
constexpr int64_t kSerial = 512;
// Elements of the triangle that one task multiplies, and the most tasks: each has a vector of sums of its own.
constexpr int64_t kTaskElements = 1 << 16;
constexpr int64_t kMostTasks = 32;
// Columns of the vectors that one task goes through.
constexpr int64_t kRange = 1024;
// Rows and columns of a tile of the update.
constexpr int64_t kTile = 256;
// Reflections that vectors are multiplied by together, and the vectors that one task multiplies.
constexpr int64_t kBlock = 64, kVectors = 64;

template <class Vector>
MOLAE_INLINE auto sum_of(const Vector& sums) {
  auto sum = sums[0];
  for (size_t lane = 1; lane < sizeof(Vector) / sizeof(sum); ++lane) sum += sums[lane];
  return sum;
}

// R rows of a triangle at once, `cols` elements of each: y[i] = a[i] . x, and z += sum of scale[i] a[i]: every element
// is loaded once for both halves of the symmetric matrix.
template <int R, class Real>
MOLAE_INLINE void multiply_rows(const Real* a, int64_t ld, int64_t cols, const Real* x, const Real* scale, Real* y,
                                Real* z) {
  typedef Real Vector __attribute__((vector_size(32)));
  constexpr int64_t kWidth = sizeof(Vector) / sizeof(Real);
  Vector sums[R] = {};
  int64_t j = 0;
  for (; j + kWidth <= cols; j += kWidth) {
    Vector inputs, outputs;
    load(inputs, x + j);
    load(outputs, z + j);
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      Vector row;
      load(row, a + i * ld + j);
      sums[i] += row * inputs;
      outputs += row * scale[i];
    }
    store(z + j, outputs);
  }
  for (int i = 0; i < R; ++i) y[i] = sum_of(sums[i]);
  for (; j < cols; ++j) {
    for (int i = 0; i < R; ++i) {
      y[i] += a[i * ld + j] * x[j];
      z[j] += a[i * ld + j] * scale[i];
    }
  }
}

// Rows [begin, end) of a symmetric matrix's lower triangle times x, for these rows and, as columns, for all before
// them: sums[0, end) gets what they add to the product.
template <class Real>
MOLAE_INLINE void multiply_triangle_rows(const Real* a, int64_t ld, int64_t begin, int64_t end, const Real* x,
                                         Real* sums) {
  constexpr int kRows = 4;
  std::fill_n(sums, end, Real(0));
  Real y[kRows];
  int64_t i = begin;
  for (; i + kRows <= end; i += kRows) {
    multiply_rows<kRows>(a + i * ld, ld, i, x, x + i, y, sums);
    for (int r = 0; r < kRows; ++r) {  // the triangle at their end
      const Real* row = a + (i + r) * ld + i;
      for (int c = 0; c < r; ++c) {
        y[r] += row[c] * x[i + c];
        y[c] += row[c] * x[i + r];
      }
      y[r] += row[r] * x[i + r];
    }
    for (int r = 0; r < kRows; ++r) sums[i + r] += y[r];
  }
  for (; i < end; ++i) {
    multiply_rows<1>(a + i * ld, ld, i, x, x + i, y, sums);
    sums[i] += y[0] + a[i * ld + i] * x[i];
  }
}

MOLAE_MULTIVERSION void triangle_rows(const float* a, int64_t ld, int64_t begin, int64_t end, const float* x,
                                      float* sums) {
  multiply_triangle_rows(a, ld, begin, end, x, sums);
}
MOLAE_MULTIVERSION void triangle_rows(const double* a, int64_t ld, int64_t begin, int64_t end, const double* x,
                                      double* sums) {
  multiply_triangle_rows(a, ld, begin, end, x, sums);
}

inline float dot(int64_t n, const float* x, const float* y) { return cblas_sdot(blas::to_int(n), x, 1, y, 1); }
inline double dot(int64_t n, const double* x, const double* y) { return cblas_ddot(blas::to_int(n), x, 1, y, 1); }
inline void add_scaled(int64_t n, float factor, const float* x, float* y) {
  cblas_saxpy(blas::to_int(n), factor, x, 1, y, 1);
}
inline void add_scaled(int64_t n, double factor, const double* x, double* y) {
  cblas_daxpy(blas::to_int(n), factor, x, 1, y, 1);
}

// y += the rows of m [rows, ld], each times its factor, over `cols` columns.
inline void add_rows(const float* m, int64_t rows, int64_t cols, int64_t ld, const float* factors, float* y) {
  cblas_sgemv(CblasRowMajor, CblasTrans, blas::to_int(rows), blas::to_int(cols), 1, m, blas::to_int(ld), factors, 1, 1,
              y, 1);
}
inline void add_rows(const double* m, int64_t rows, int64_t cols, int64_t ld, const double* factors, double* y) {
  cblas_dgemv(CblasRowMajor, CblasTrans, blas::to_int(rows), blas::to_int(cols), 1, m, blas::to_int(ld), factors, 1, 1,
              y, 1);
}
// y = m x
inline void multiply(const float* m, int64_t rows, int64_t cols, int64_t ld, const float* x, float* y) {
  cblas_sgemv(CblasRowMajor, CblasNoTrans, blas::to_int(rows), blas::to_int(cols), 1, m, blas::to_int(ld), x, 1, 0, y,
              1);
}
inline void multiply(const double* m, int64_t rows, int64_t cols, int64_t ld, const double* x, double* y) {
  cblas_dgemv(CblasRowMajor, CblasNoTrans, blas::to_int(rows), blas::to_int(cols), 1, m, blas::to_int(ld), x, 1, 0, y,
              1);
}

// Takes the last rows of A's leading part, a panel at a time. With v the reflection of a row and w what it takes of the
// rest, A becomes A - v wᵀ - w vᵀ; within a panel A itself stays as it was.
template <class Real>
class Reduction {
 public:
  Reduction(Context context, int64_t n, Real* a, Real* d, Real* e, Real* tau)
      : context_(context), n_(n), a_(a), d_(d), e_(e), tau_(tau) {
    panel_ = context.workspace.get<Real>(kOperandB, 3 * kPanel * n);
    sums_ = context.workspace.get<Real>(kResult, kMostTasks * n);
    parts_ = context.workspace.get<Real>(kScratch, ceil_divide(n, kRange));
  }

  void run() {
    int64_t order = n_;
    while (order > kSerial) {
      const int64_t rows = std::min(kPanel, order - kSerial);
      for (int64_t k = 0; k < rows; ++k) reduce_row(order - 1 - k, k);
      order -= rows;
      update(order, rows);
    }
    reduce_rest(order);
  }

 private:
  // v and w of the panel's k-th reflection. Twice, so that both [v; w] and [w; v] are matrices.
  Real* v(int64_t k) { return panel_ + k * n_; }
  Real* w(int64_t k) { return panel_ + (kPanel + k) * n_; }
  Real* v_again(int64_t k) { return panel_ + (2 * kPanel + k) * n_; }

  // Row i becomes e's element beside the diagonal, and the k-th reflection of its panel.
  void reduce_row(int64_t i, int64_t k) {
    Real* row = a_ + i * n_;
    Real by_v[kPanel], by_w[kPanel];
    for (int64_t j = 0; j < k; ++j) {
      by_v[j] = -w(j)[i];
      by_w[j] = -v(j)[i];
    }
    over_ranges(i + 1, [&](int64_t begin, int64_t count, int64_t) { add_panel(k, begin, count, by_v, by_w, row); });
    d_[i] = row[i];

    lapack::larfg(blas::to_int(i), &row[i - 1], row, &tau_[i - 1]);
    e_[i - 1] = row[i - 1];
    row[i - 1] = 1;
    Real* reflection = v(k);
    std::copy(row, row + i, reflection);
    std::fill(reflection + i, reflection + n_, Real(0));
    std::copy(reflection, reflection + n_, v_again(k));
    multiply_by_rest(i, k, reflection, tau_[i - 1], w(k));
    row[i - 1] = e_[i - 1];
  }

  // to[begin, begin + count) += the first k rows of v and w, times factors.
  void add_panel(int64_t k, int64_t begin, int64_t count, const Real* by_v, const Real* by_w, Real* to) {
    if (k == 0) return;
    add_rows(v(0) + begin, k, count, n_, by_v, to + begin);
    add_rows(w(0) + begin, k, count, n_, by_w, to + begin);
  }

  // w = tau (A' x) - (tau^2 / 2) (x . A' x) x, A' the first `order` rows and columns of A after the panel's first k
  // reflections.
  void multiply_by_rest(int64_t order, int64_t k, const Real* x, Real tau, Real* out) {
    const int64_t tasks = multiply_triangle(order, x);
    Real by_v[kPanel], by_w[kPanel];
    if (k > 0) {
      multiply(w(0), k, order, n_, x, by_v);
      multiply(v(0), k, order, n_, x, by_w);
    }
    for (int64_t j = 0; j < k; ++j) {
      by_v[j] = -by_v[j];
      by_w[j] = -by_w[j];
    }
    over_ranges(order, [&](int64_t begin, int64_t count, int64_t range) {
      std::fill_n(out + begin, count, Real(0));
      // A task's sums end with its rows.
      for (int64_t task = 0; task < tasks; ++task) {
        const int64_t own = std::min(begin + count, bounds_[task + 1]) - begin;
        if (own > 0) add_scaled(own, 1, sums_ + task * n_ + begin, out + begin);
      }
      add_panel(k, begin, count, by_v, by_w, out);
      parts_[range] = dot(count, out + begin, x + begin);
    });
    Real product = 0;
    for (int64_t range = 0; range * kRange < order; ++range) product += parts_[range];
    const Real along = -tau * tau * product / 2;
    for (int64_t j = 0; j < order; ++j) out[j] = tau * out[j] + along * x[j];
    std::fill(out + order, out + n_, Real(0));
  }

  // Fills sums_, and says by how many tasks. They depend on the order alone: so does the result, then.
  int64_t multiply_triangle(int64_t order, const Real* x) {
    const int64_t tasks = std::clamp<int64_t>(order * order / 2 / kTaskElements, 1, kMostTasks);
    bounds_[0] = 0;
    for (int64_t task = 1; task < tasks; ++task) {  // of equal areas, whole groups of rows
      const double share = std::sqrt(static_cast<double>(task) / static_cast<double>(tasks));
      bounds_[task] = static_cast<int64_t>(share * static_cast<double>(order)) / 4 * 4;
    }
    bounds_[tasks] = order;
    // The longest rows first: what is left for the end is short.
    ComputePool::instance().parallel_for(context_.threads, tasks, [&](int64_t index, int) {
      const int64_t task = tasks - 1 - index;
      triangle_rows(a_, n_, bounds_[task], bounds_[task + 1], x, sums_ + task * n_);
    });
    return tasks;
  }

  template <class Body>
  void over_ranges(int64_t length, Body&& body) {
    ComputePool::instance().for_ranges(context_.threads, length, kRange, [&](int64_t begin, int64_t end, int) {
      body(begin, end - begin, begin / kRange);
    });
  }

  // A -= VᵀW + WᵀV, the lower triangle of its first `order` rows. The panel is full.
  void update(int64_t order, int64_t rows) {
    const int64_t blocks = ceil_divide(order, kTile);
    ComputePool::instance().parallel_for(context_.threads, blocks * (blocks + 1) / 2, [&](int64_t index, int) {
      int64_t block_row = 0;
      while ((block_row + 1) * (block_row + 2) / 2 <= index) ++block_row;
      const int64_t row = block_row * kTile, col = (index - block_row * (block_row + 1) / 2) * kTile;
      const int64_t tile_rows = std::min(kTile, order - row), tile_cols = std::min(kTile, order - col);
      Real* tile = a_ + row * n_ + col;
      if (rows == kPanel) {
        blas::gemm(true, false, tile_rows, tile_cols, 2 * kPanel, -1, v(0) + row, n_, w(0) + col, n_, 1, tile, n_);
      } else {
        blas::gemm(true, false, tile_rows, tile_cols, rows, -1, v(0) + row, n_, w(0) + col, n_, 1, tile, n_);
        blas::gemm(true, false, tile_rows, tile_cols, rows, -1, w(0) + row, n_, v(0) + col, n_, 1, tile, n_);
      }
    });
  }

  void reduce_rest(int64_t order) {
    const int size = blas::to_int(order), lwork = size * 64;
    Real* work = context_.workspace.get<Real>(kOperandA, lwork);
    lapack::sytrd(size, a_, blas::to_int(n_), d_, e_, tau_, work, lwork);
  }

  Context context_;
  int64_t n_;
  Real *a_, *d_, *e_, *tau_;
  Real *panel_, *sums_, *parts_;
  int64_t bounds_[kMostTasks + 1];
};

// Reflections q to q + count make one block: their product, the last one leftmost, is I - Vᵀ T V with the reflections
// as the rows of V [count, order] and T a lower triangle (Schreiber and Van Loan 1989).
struct Block {
  int64_t first, count, order;
};

Block block_of(int64_t index, int64_t n) {
  const int64_t first = index * kBlock, count = std::min(kBlock, n - 1 - first);
  return {first, count, first + count};
}

// Makes the block's rows of a those of V: a reflection has a one where its row had e, and zeros behind. Then T.
template <class Real>
void make_block(const Block& block, int64_t n, Real* a, const Real* tau, Real* t) {
  Real* v = a + (block.first + 1) * n;
  for (int64_t k = 0; k < block.count; ++k) {
    Real* row = v + k * n;
    row[block.first + k] = 1;
    std::fill(row + block.first + k + 1, row + block.order, Real(0));
  }
  Real overlaps[kBlock * kBlock];
  blas::gemm(false, true, block.count, block.count, block.order, 1, v, n, v, n, 0, overlaps, kBlock);
  std::fill_n(t, kBlock * kBlock, Real(0));
  for (int64_t k = 0; k < block.count; ++k) {
    const Real factor = tau[block.first + k];
    for (int64_t j = 0; j < k; ++j) {
      Real sum = 0;
      for (int64_t l = j; l < k; ++l) sum += overlaps[k * kBlock + l] * t[l * kBlock + j];
      t[k * kBlock + j] = -factor * sum;
    }
    t[k * kBlock + k] = factor;
  }
}

}  // namespace

template <class Real>
void tridiagonalize(Context context, int64_t n, Real* a, Real* d, Real* e, Real* tau) {
  Reduction<Real>(context, n, a, d, e, tau).run();
}

template <class Real>
void multiply_by_reflections(Context context, int64_t n, Real* a, const Real* tau, int64_t count, Real* vectors) {
  const int64_t blocks = ceil_divide(n - 1, kBlock);
  Real* t = context.workspace.get<Real>(kOperandA, blocks * kBlock * kBlock);
  Real* scratch = context.workspace.get<Real>(kScratch, 2 * kVectors * kBlock * context.threads);
  ComputePool& pool = ComputePool::instance();
  pool.parallel_for(context.threads, blocks, [&](int64_t index, int) {
    make_block(block_of(index, n), n, a, tau, t + index * kBlock * kBlock);
  });
  pool.for_ranges(context.threads, count, kVectors, [&](int64_t begin, int64_t end, int participant) {
    const int64_t rows = end - begin;
    Real* own = vectors + begin * n;
    Real* products = scratch + 2 * kVectors * kBlock * participant;
    Real* factors = products + kVectors * kBlock;
    for (int64_t index = 0; index < blocks; ++index) {
      const Block block = block_of(index, n);
      const Real* v = a + (block.first + 1) * n;
      blas::gemm(false, true, rows, block.count, block.order, 1, own, n, v, n, 0, products, kBlock);
      blas::gemm(false, true, rows, block.count, block.count, 1, products, kBlock, t + index * kBlock * kBlock, kBlock,
                 0, factors, kBlock);
      blas::gemm(false, false, rows, block.order, block.count, -1, factors, kBlock, v, n, 1, own, n);
    }
  });
}

template void tridiagonalize(Context, int64_t, float*, float*, float*, float*);
template void tridiagonalize(Context, int64_t, double*, double*, double*, double*);
template void multiply_by_reflections(Context, int64_t, float*, const float*, int64_t, float*);
template void multiply_by_reflections(Context, int64_t, double*, const double*, int64_t, double*);

}  // namespace molae::cpu
