#include "cpu/linalg/divide_and_conquer.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/linalg/blas.h"
#include "cpu/linalg/lapack.h"
#include "cpu/linalg/merge.h"
#include "cpu/system/compute_pool.h"

namespace molae::cpu {
namespace {

// Parts up to this order are left to LAPACK.
constexpr int64_t kLeaf = 128;

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
    merge(context_, parts[0], parts[1], e_[parts[1].begin - 1], d_, top, values, vectors);
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
      merge(context_, first, second, e_[second.begin - 1], d_, merged[i].size, d_ + merged[i].begin, merged[i].vectors);
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
