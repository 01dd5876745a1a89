#include "cpu/linalg/divide_and_conquer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "cpu/linalg/blas.h"
#include "cpu/linalg/lapack.h"
#include "cpu/simd/multiversion.h"
#include "cpu/simd/vectors.h"
#include "cpu/system/compute_pool.h"

namespace molae::cpu {
namespace {

// Parts up to this order are left to LAPACK.
constexpr int64_t kLeaf = 128;
// Roots of the secular equation that one task finds.
constexpr int64_t kRoots = 32;
// Eigenvectors that one task multiplies, at most and at least.
constexpr int64_t kMostVectors = 128, kLeastVectors = 32;

// A diagonal block: its eigenvectors [size, size] are rows, in the order of the values at d[begin].
template <class Real>
struct Part {
  int64_t begin, size;
  Real* vectors;
};

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

// What stedc needs as workspace.
int64_t leaf_work(int64_t n) { return 1 + 4 * n + n * n; }
int64_t leaf_integers(int64_t n) { return 3 + 5 * n; }

template <class Real>
void solve_leaf(int64_t n, Real* d, Real* e, Real* vectors, Real* work, int* iwork) {
  const int order = blas::to_int(n), lwork = blas::to_int(leaf_work(n)), liwork = blas::to_int(leaf_integers(n));
  lapack::stedc(order, d, e, vectors, work, lwork, iwork, liwork);
}

// Halved until every part is a leaf. Where a part ends, what is beside the diagonal is taken out of it.
template <class Real>
class Division {
 public:
  Division(Context context, int64_t n, Real* d, Real* e) : context_(context), n_(n), d_(d), e_(e), bounds_{0, n} {
    while (largest() > kLeaf) halve();
    for (size_t part = 1; part + 1 < bounds_.size(); ++part) {
      const int64_t cut = bounds_[part];
      d_[cut - 1] -= std::abs(e_[cut - 1]);
      d_[cut] -= std::abs(e_[cut - 1]);
    }
  }

  void run(int64_t top, Real* values, Real* vectors) {
    std::vector<Part<Real>> parts = solve_leaves();
    if (parts.size() == 1) return copy_leaf(top, parts[0].vectors, values, vectors);
    while (parts.size() > 2) parts = merge_pairs(parts);
    Merge<Real>(context_, parts[0], parts[1], e_[parts[1].begin - 1], d_).run(top, values, vectors);
  }

 private:
  int64_t largest() const {
    int64_t size = 0;
    for (size_t part = 1; part < bounds_.size(); ++part) size = std::max(size, bounds_[part] - bounds_[part - 1]);
    return size;
  }

  void halve() {
    std::vector<int64_t> halved{0};
    for (size_t part = 1; part < bounds_.size(); ++part) {
      halved.push_back((bounds_[part - 1] + bounds_[part]) / 2);
      halved.push_back(bounds_[part]);
    }
    bounds_ = std::move(halved);
  }

  // Parts between every stride-th bound, their eigenvectors one after another. Levels take turns with two blocks: the
  // last level's has half of n², what came before it fits the other one's quarter.
  std::vector<Part<Real>> parts_between(size_t stride) {
    size_t elements = 0;
    for (size_t bound = stride; bound < bounds_.size(); bound += stride) {
      elements +=
          static_cast<size_t>((bounds_[bound] - bounds_[bound - stride]) * (bounds_[bound] - bounds_[bound - stride]));
    }
    size_t level = 0;
    while ((stride << level) < (bounds_.size() - 1) / 2) ++level;
    Real* next = context_.workspace.template get<Real>(level % 2 == 0 ? kOperandA : kOperandB, elements);
    std::vector<Part<Real>> parts;
    for (size_t bound = stride; bound < bounds_.size(); bound += stride) {
      const int64_t begin = bounds_[bound - stride], size = bounds_[bound] - begin;
      parts.push_back({begin, size, next});
      next += size * size;
    }
    return parts;
  }

  std::vector<Part<Real>> solve_leaves() {
    const std::vector<Part<Real>> parts = parts_between(1);
    const int64_t order = largest(), work_size = leaf_work(order), integers = leaf_integers(order);
    Real* work = context_.workspace.template get<Real>(kWork, context_.threads * work_size);
    int* iwork = context_.workspace.template get<int>(kIntegers, context_.threads * integers);
    ComputePool::instance().parallel_for(context_.threads, static_cast<int64_t>(parts.size()),
                                         [&](int64_t i, int participant) {
                                           const Part<Real>& part = parts[i];
                                           solve_leaf(part.size, d_ + part.begin, e_ + part.begin, part.vectors,
                                                      work + participant * work_size, iwork + participant * integers);
                                         });
    return parts;
  }

  std::vector<Part<Real>> merge_pairs(const std::vector<Part<Real>>& parts) {
    const std::vector<Part<Real>> merged = parts_between(2 * (bounds_.size() - 1) / parts.size());
    for (size_t i = 0; i < merged.size(); ++i) {
      const Part<Real>&first = parts[2 * i], &second = parts[2 * i + 1];
      Merge<Real>(context_, first, second, e_[second.begin - 1], d_)
          .run(merged[i].size, d_ + merged[i].begin, merged[i].vectors);
    }
    return merged;
  }

  // Ascending to descending.
  void copy_leaf(int64_t top, const Real* leaf, Real* values, Real* vectors) const {
    std::reverse_copy(d_, d_ + n_, values);
    for (int64_t i = 0; i < top; ++i) std::copy_n(leaf + (n_ - 1 - i) * n_, n_, vectors + i * n_);
  }

  Context context_;
  int64_t n_;
  Real *d_, *e_;
  std::vector<int64_t> bounds_;
};

template <class Real>
Real largest_magnitude(int64_t n, const Real* x) {
  Real largest = 0;
  for (int64_t i = 0; i < n; ++i) largest = std::max(largest, std::abs(x[i]));
  return largest;
}

template <class Real>
void scale_by_power(int64_t n, int power, Real* x) {
  for (int64_t i = 0; i < n; ++i) x[i] = std::ldexp(x[i], power);
}

}  // namespace

template <class Real>
void tridiagonal_eigenvectors(Context context, int64_t n, int64_t top, Real* d, Real* e, Real* values, Real* vectors) {
  // By a power of two: tolerances compare eigenvalues with elements of eigenvectors.
  int power = 0;
  std::frexp(std::max(largest_magnitude(n, d), largest_magnitude(n - 1, e)), &power);
  scale_by_power(n, -power, d);
  scale_by_power(n - 1, -power, e);
  Division<Real>(context, n, d, e).run(top, values, vectors);
  scale_by_power(n, power, values);
}

template void tridiagonal_eigenvectors(Context, int64_t, int64_t, float*, float*, float*, float*);
template void tridiagonal_eigenvectors(Context, int64_t, int64_t, double*, double*, double*, double*);

}  // namespace molae::cpu
