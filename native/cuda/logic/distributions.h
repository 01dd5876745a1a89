#pragma once

#include "cuda/logic/block_reduce.h"
#include "cuda/logic/decoder_kernel.h"
#include "cuda/logic/error_record.h"
#include "cuda/logic/number.h"

// What evaluation asks of logits [rows, size]: a block a row, sums in f64.
namespace molae::cuda {

inline constexpr int kDistributionThreads = 256;

struct Largest {
  float value;
  int64_t index;  // the first of equal ones
};

MOLAE_HD Largest larger(const Largest& a, const Largest& b) {
  return b.value > a.value || (b.value == a.value && b.index < a.index) ? b : a;
}

struct DistributionShared {
  Largest largest[kDistributionThreads];
  double sums[kDistributionThreads];
};

// largest[0] is the largest logit afterwards; NaN is never that.
template <class Block>
MOLAE_HD void find_largest(const Block& block, const float* row, int64_t size, Largest* largest) {
  block.each_thread([&](int thread) {
    Largest best{-INFINITY, size};
    for (int64_t i = thread; i < size; i += kDistributionThreads) best = larger(best, {row[i], i});
    largest[thread] = best;
  });
  reduce_block<kDistributionThreads>(block, largest, [](const Largest& a, const Largest& b) { return larger(a, b); });
}

// sums[0] is the sum of term(i) afterwards.
template <class Block, class Term>
MOLAE_HD void sum_terms(const Block& block, int64_t size, double* sums, Term term) {
  block.each_thread([&](int thread) {
    double sum = 0;
    for (int64_t i = thread; i < size; i += kDistributionThreads) sum += term(i);
    sums[thread] = sum;
  });
  reduce_block<kDistributionThreads>(block, sums, [](double a, double b) { return a + b; });
}

// log(sum(exp(row))) in every thread. NaN where the row has NaN or +infinity, or nothing else than -infinity.
template <class Block>
MOLAE_HD double log_sum_exp(const Block& block, const float* row, int64_t size, DistributionShared& shared,
                            Largest& largest) {
  find_largest(block, row, size, shared.largest);
  largest = shared.largest[0];
  const double top = largest.value;
  sum_terms(block, size, shared.sums, [&](int64_t i) { return ::exp(row[i] - top); });
  const double sum = shared.sums[0];
  block.each_thread([](int) {});  // everyone has read it
  return sum - sum == 0 ? top + ::log(sum) : NAN;
}

// losses[row] = -log softmax(logits[row])[targets[row]]. What is wrong is reported, and its loss is NaN.
struct CrossEntropy {
  static constexpr int kThreads = kDistributionThreads;
  using Shared = DistributionShared;
  const float* logits;     // [rows, size]
  const int32_t* targets;  // [rows]
  double* losses;          // [rows]
  int64_t rows, size;
  unsigned long long* error;

  int64_t blocks() const { return rows; }
  template <class Block>
  MOLAE_HD void run(const Block& block, Shared& shared) const {
    const int64_t row = block.index();
    const int32_t target = targets[row];
    const bool known = target >= 0 && target < size;
    Largest largest;
    const double normalizer = known ? log_sum_exp(block, logits + row * size, size, shared, largest) : NAN;
    block.each_thread_unsynced([&](int thread) {
      if (thread != 0) return;
      if (!known) {
        report_error(error, error_record(InputError::TargetOutOfRange, row, target));
      } else if (normalizer != normalizer) {
        report_error(error, error_record(InputError::RowNotFinite, row, 0));
      }
      losses[row] = known ? normalizer - logits[row * size + target] : NAN;
    });
  }
};

// divergences[row] = KL(softmax(p[row]) || softmax(q[row])), agreements[row] = both have their maximum in one place.
struct CompareDistributions {
  static constexpr int kThreads = kDistributionThreads;
  using Shared = DistributionShared;
  const float* p;       // [rows, size]
  const float* q;       // [rows, size]
  double* divergences;  // [rows]
  int32_t* agreements;  // [rows]
  int64_t rows, size;
  unsigned long long* error;

  int64_t blocks() const { return rows; }
  template <class Block>
  MOLAE_HD void run(const Block& block, Shared& shared) const {
    const int64_t row = block.index();
    const float* a = p + row * size;
    const float* b = q + row * size;
    Largest a_largest, b_largest;
    const double a_sum = log_sum_exp(block, a, size, shared, a_largest);
    const double b_sum = log_sum_exp(block, b, size, shared, b_largest);
    sum_terms(block, size, shared.sums, [&](int64_t i) {
      const double log_p = a[i] - a_sum;
      const double probability = ::exp(log_p);
      return probability == 0 ? 0.0 : probability * (log_p - (b[i] - b_sum));
    });
    block.each_thread_unsynced([&](int thread) {
      if (thread != 0) return;
      const bool finite = a_sum == a_sum && b_sum == b_sum;
      if (!finite) report_error(error, error_record(InputError::RowNotFinite, row, 0));
      divergences[row] = finite ? shared.sums[0] : NAN;
      agreements[row] = a_largest.index == b_largest.index ? 1 : 0;
    });
  }
};

}  // namespace molae::cuda
