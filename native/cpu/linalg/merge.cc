#include "cpu/linalg/merge.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "core/checked.h"
#include "cpu/linalg/blas.h"
#include "cpu/linalg/lapack.h"
#include "cpu/simd/multiversion.h"
#include "cpu/simd/vectors.h"
#include "cpu/system/compute_pool.h"

namespace molae::cpu {
namespace {

// Roots of the secular equation that one task finds.
constexpr int64_t kRoots = 32;
// Eigenvectors that one task multiplies, at most and at least.
constexpr int64_t kMostVectors = 128, kLeastVectors = 32;

// A turn of two eigenvectors of equal eigenvalue, after which one of them is not coupled: a' = c a + s b, b' = c b - s
// a.
template <class Real>
struct Rotation {
  int64_t a, b;
  Real c, s;
};

// products[i] *= delta[i] / (poles[i] - poles[root]), delta[i] being poles[i] less the root.
template <class Real>
MOLAE_INLINE void multiply_ratios(int64_t begin, int64_t end, Real pole, const Real* poles, const Real* delta,
                                  Real* products) {
  for (int64_t i = begin; i < end; ++i) products[i] *= delta[i] / (poles[i] - pole);
}

template <class Real>
MOLAE_INLINE void multiply_by_root(int64_t count, int64_t root, const Real* poles, const Real* delta, Real* products) {
  multiply_ratios(0, root, poles[root], poles, delta, products);
  products[root] *= delta[root];
  multiply_ratios(root + 1, count, poles[root], poles, delta, products);
}

MOLAE_MULTIVERSION void add_root(int64_t count, int64_t root, const float* poles, const float* delta, float* products) {
  multiply_by_root(count, root, poles, delta, products);
}
MOLAE_MULTIVERSION void add_root(int64_t count, int64_t root, const double* poles, const double* delta,
                                 double* products) {
  multiply_by_root(count, root, poles, delta, products);
}

// Two neighbours become one: with Z their eigenvectors and D their eigenvalues, the block of both is
// Z (D + rho z zᵀ) Zᵀ. Its eigenvalues are the roots of 1 + rho sum of z² / (D - x), found by laed4, and its
// eigenvectors Z times those of D + rho z zᵀ.
template <class Real>
class Merge {
 public:
  // beside: the element between the two, which their diagonals were made smaller by. d has their eigenvalues.
  Merge(Context context, const Part<Real>& first, const Part<Real>& second, Real beside, Real* d)
      : context_(context), first_(first), second_(second), n_(first.size + second.size), d_(d + first.begin) {
    couple(beside);
    deflate();
    roots_.resize(poles_.size());
  }

  // Of the eigenvectors [top, n] the leading ones, as rows; all eigenvalues, descending. values may be the d given.
  void run(int64_t top, Real* values, Real* vectors) {
    find_roots(top, vectors);
    if (!roots_are_vectors()) correct_weights();
    const std::vector<int64_t> rows = order_values(top, values);
    multiply(top, vectors);
    permute_rows(rows, vectors);
  }

 private:
  int64_t coupled_count() const { return static_cast<int64_t>(poles_.size()); }
  int64_t root_tasks() const { return ceil_divide(coupled_count(), kRoots); }

  // z of length one, and rho.
  void couple(Real beside) {
    rho_ = 2 * std::abs(beside);
    z_.resize(n_);
    const Real scale = std::sqrt(Real(0.5)), second_scale = beside < 0 ? -scale : scale;
    for (int64_t i = 0; i < first_.size; ++i) z_[i] = scale * first_.vectors[(i + 1) * first_.size - 1];
    for (int64_t i = 0; i < second_.size; ++i) z_[first_.size + i] = second_scale * second_.vectors[i * second_.size];
  }

  // Eigenvectors that hardly see the other half are eigenvectors of the whole. So is, of two with nearly the same
  // eigenvalue, the combination that does not see it. What is left has poles that differ.
  void deflate() {
    std::vector<int64_t> order(n_);
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int64_t i, int64_t j) { return d_[i] < d_[j]; });
    Real largest = 0;
    for (int64_t i = 0; i < n_; ++i) largest = std::max({largest, std::abs(d_[i]), std::abs(z_[i])});
    const Real tolerance = 4 * std::numeric_limits<Real>::epsilon() * largest;
    int64_t last = -1;
    for (const int64_t i : order) {
      if (rho_ * std::abs(z_[i]) <= tolerance) {
        deflated_.push_back(i);
        continue;
      }
      if (last >= 0 && !turned_away(last, i, tolerance)) keep(last);
      last = i;
    }
    if (last >= 0) keep(last);
    std::sort(deflated_.begin(), deflated_.end(), [&](int64_t i, int64_t j) { return d_[i] > d_[j]; });
  }

  void keep(int64_t i) {
    coupled_.push_back(i);
    poles_.push_back(d_[i]);
    weights_.push_back(z_[i]);
  }

  // Whether `last` could be deflated by a turn with i.
  bool turned_away(int64_t last, int64_t i, Real tolerance) {
    const Real length = std::hypot(z_[i], z_[last]), c = z_[i] / length, s = -z_[last] / length;
    if (std::abs((d_[i] - d_[last]) * c * s) > tolerance) return false;
    rotations_.push_back({last, i, c, s});
    z_[i] = length;
    const Real low = d_[last], high = d_[i];
    d_[last] = low * c * c + high * s * s;
    d_[i] = low * s * s + high * c * c;
    deflated_.push_back(last);
    return true;
  }

  // The roots, and of those that may be among the leading ones their distances from the poles, the largest root's in
  // the first row of `vectors`. Every task multiplies the ratios of its roots.
  void find_roots(int64_t top, Real* vectors) {
    const int64_t count = coupled_count(), tasks = root_tasks();
    products_ = context_.workspace.template get<Real>(kResult, tasks * count);
    Real* scratch = context_.workspace.template get<Real>(kScratch, context_.threads * count);
    ComputePool::instance().parallel_for(context_.threads, tasks, [&](int64_t task, int participant) {
      Real* own = products_ + task * count;
      std::fill_n(own, count, Real(1));
      for (int64_t root = task * kRoots; root < std::min(count, (task + 1) * kRoots); ++root) {
        const int64_t row = count - 1 - root;
        Real* delta = row < top ? vectors + row * n_ : scratch + participant * count;
        find_root(root, delta);
        add_root(count, root, poles_.data(), delta, own);
      }
    });
    // They lie between the poles: rounding alone could disorder them.
    std::partial_sum(roots_.begin(), roots_.end(), roots_.begin(), [](Real a, Real b) { return std::max(a, b); });
  }

  // To the weights of which the roots found are the exact ones: with them eigenvectors are orthogonal however close the
  // roots. In one order, whoever multiplied.
  void correct_weights() {
    const int64_t count = coupled_count(), tasks = root_tasks();
    for (int64_t i = 0; i < count; ++i) {
      Real product = 1;
      for (int64_t task = 0; task < tasks; ++task) product *= products_[task * count + i];
      weights_[i] = std::copysign(std::sqrt(-product), weights_[i]);
    }
  }

  void find_root(int64_t root, Real* delta) {
    const int count = blas::to_int(coupled_count()), index = blas::to_int(root + 1);
    lapack::laed4(count, index, poles_.data(), weights_.data(), delta, rho_, &roots_[root]);
  }

  // What laed4 gives instead of distances where there are so few.
  bool roots_are_vectors() const { return coupled_count() <= 2; }

  // Merges roots and deflated values. The row that each of the leading ones is computed in: roots come first.
  std::vector<int64_t> order_values(int64_t top, Real* values) {
    std::vector<Real> uncoupled;
    for (const int64_t i : deflated_) uncoupled.push_back(d_[i]);
    const int64_t count = coupled_count();
    int64_t roots = 0, others = 0;
    std::vector<int64_t> rows, other_ranks;
    for (int64_t i = 0; i < n_; ++i) {
      if (roots < count && (others == n_ - count || roots_[count - 1 - roots] >= uncoupled[others])) {
        values[i] = roots_[count - 1 - roots];
        if (i < top) rows.push_back(roots);
        ++roots;
      } else {
        values[i] = uncoupled[others++];
        if (i < top) {
          other_ranks.push_back(i);
          rows.push_back(-1);
        }
      }
    }
    leading_roots_ = top - static_cast<int64_t>(other_ranks.size());
    for (size_t i = 0; i < other_ranks.size(); ++i) rows[other_ranks[i]] = leading_roots_ + static_cast<int64_t>(i);
    return rows;
  }

  // Coordinates of a row's eigenvector in those of the two halves, from the distances in the same row.
  void find_coordinates(int64_t row, const Real* delta, Real* coordinates) const {
    std::fill_n(coordinates, n_, Real(0));
    if (row < leading_roots_) {
      Real squares = 0;
      for (size_t i = 0; i < coupled_.size(); ++i) {
        const Real value = roots_are_vectors() ? delta[i] : weights_[i] / delta[i];
        coordinates[coupled_[i]] = value;
        squares += value * value;
      }
      const Real scale = 1 / std::sqrt(squares);
      for (const int64_t i : coupled_) coordinates[i] *= scale;
    } else {
      coordinates[deflated_[row - leading_roots_]] = 1;
    }
    for (auto turn = rotations_.rbegin(); turn != rotations_.rend(); ++turn) {
      const Real a = coordinates[turn->a], b = coordinates[turn->b];
      coordinates[turn->a] = turn->c * a - turn->s * b;
      coordinates[turn->b] = turn->s * a + turn->c * b;
    }
  }

  void multiply(int64_t top, Real* vectors) {
    const int64_t most = std::clamp(top / 8, kLeastVectors, kMostVectors);
    Real* scratch = context_.workspace.template get<Real>(kScratch, context_.threads * most * n_);
    ComputePool::instance().for_ranges(context_.threads, top, most, [&](int64_t begin, int64_t end, int participant) {
      const int64_t count = end - begin;
      Real* coordinates = scratch + participant * most * n_;
      Real* own = vectors + begin * n_;
      for (int64_t i = 0; i < count; ++i) find_coordinates(begin + i, own + i * n_, coordinates + i * n_);
      for (const Part<Real>& half : {first_, second_}) {
        const int64_t column = half.begin - first_.begin;
        blas::gemm(false, false, count, half.size, half.size, 1, coordinates + column, n_, half.vectors, half.size, 0,
                   own + column, n_);
      }
    });
  }

  // Row i becomes what row rows[i] was.
  void permute_rows(std::vector<int64_t> rows, Real* vectors) const {
    std::vector<Real> kept(n_);
    for (size_t first = 0; first < rows.size(); ++first) {
      if (rows[first] == static_cast<int64_t>(first)) continue;
      std::copy_n(vectors + first * n_, n_, kept.data());
      size_t to = first;
      while (rows[to] != static_cast<int64_t>(first)) {
        const size_t from = static_cast<size_t>(rows[to]);
        std::copy_n(vectors + from * n_, n_, vectors + to * n_);
        rows[to] = static_cast<int64_t>(to);
        to = from;
      }
      std::copy_n(kept.data(), n_, vectors + to * n_);
      rows[to] = static_cast<int64_t>(to);
    }
  }

  Context context_;
  Part<Real> first_, second_;
  int64_t n_;
  Real* d_;
  Real rho_ = 0;
  Real* products_ = nullptr;
  std::vector<Real> z_;                      // the last elements of the first's eigenvectors, the first of the second's
  std::vector<int64_t> coupled_, deflated_;  // eigenvectors of the halves, by ascending and by descending values
  std::vector<Rotation<Real>> rotations_;    // in the order they were made
  std::vector<Real> poles_, weights_, roots_;  // of those coupled, ascending
  int64_t leading_roots_ = 0;
};

}  // namespace

template <class Real>
void merge(Context context, const Part<Real>& first, const Part<Real>& second, Real beside, Real* d, int64_t top,
           Real* values, Real* vectors) {
  Merge<Real>(context, first, second, beside, d).run(top, values, vectors);
}

template void merge(Context, const Part<float>&, const Part<float>&, float, float*, int64_t, float*, float*);
template void merge(Context, const Part<double>&, const Part<double>&, double, double*, int64_t, double*, double*);

}  // namespace molae::cpu
