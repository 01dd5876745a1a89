#pragma once

#include <cstdint>

#include "core/routing.h"
#include "cuda/logic/epilogue.h"
#include "cuda/logic/error_record.h"

// The router: scores, groups, the top_k best, weights; step by step what native/cpu/layer/route.cc does. One warp
// routes one token.
namespace molae::cuda {

struct RouterArgs {
  const float* logits;  // [tokens, experts]
  int32_t experts;
  int32_t top_k;
  Scoring scoring;
  GroupScore group_score;
  bool renormalize;
  float scaling;
  float jitter;
  int32_t num_groups, chosen_groups;  // num_groups 0: no limit
  const float* bias;                  // [experts], or null
  int32_t* ids;                       // [tokens, top_k]
  float* weights;                     // [tokens, top_k]
  unsigned long long* error;
};

inline constexpr int kRouterThreads = 32;

struct RouterShared {
  float best_value[kRouterThreads];
  int32_t best_index[kRouterThreads];
  double sum[kRouterThreads];
  bool bad[kRouterThreads];
};

// Shared memory for a token, besides RouterShared.
struct RouterScratch {
  float* scores;  // [experts] what becomes the weights
  float* choice;  // [experts] what the experts are compared by; NaN: taken
  float* groups;  // [num_groups]
};

MOLAE_HD size_t router_scratch_floats(int32_t experts, int32_t num_groups) {
  return 2 * static_cast<size_t>(experts) + static_cast<size_t>(num_groups);
}

MOLAE_HD RouterScratch router_scratch(float* floats, int32_t experts) {
  return {floats, floats + experts, floats + 2 * static_cast<size_t>(experts)};
}

MOLAE_HD bool better(float value, int32_t index, float than_value, int32_t than_index) {
  return value > than_value || (value == than_value && index < than_index);
}

template <class Block>
class TokenRouter {
 public:
  MOLAE_HD TokenRouter(const Block& block, const RouterArgs& args, RouterShared& shared, const RouterScratch& scratch)
      : block_(block),
        args_(args),
        shared_(shared),
        scratch_(scratch),
        token_(block.index()),
        logits_(args.logits + token_ * args.experts),
        ids_(args.ids + token_ * args.top_k),
        weights_(args.weights + token_ * args.top_k) {}

  MOLAE_HD void route() {
    if (args_.scoring == Scoring::Softmax) {
      softmax();
    } else {
      score_each();
    }
    if (args_.bias) add_bias();
    if (args_.num_groups != 0) limit_to_groups();
    for (int32_t k = 0; k < args_.top_k; ++k) take_best(k);
    finish();
  }

 private:
  // Calls body(i) for the experts of a thread.
  template <class Body>
  MOLAE_HD void each_expert(int thread, Body body) const {
    for (int32_t i = thread; i < args_.experts; i += kRouterThreads) body(i);
  }

  MOLAE_HD void report(InputError kind, int32_t expert) const {
    report_error(args_.error, error_record(kind, token_, expert));
  }

  // Bad logits give every expert the same score: the ids are valid, and the error is reported.
  MOLAE_HD void set_score(int32_t i, bool finite, float score) {
    scratch_.scores[i] = finite ? score : 1.0f / static_cast<float>(args_.experts);
    scratch_.choice[i] = scratch_.scores[i];
  }

  // NaN and +infinity make the sum NaN; -infinity masks an expert.
  MOLAE_HD void softmax() {
    block_.each_thread([&](int thread) {
      float largest = -INFINITY;
      each_expert(thread, [&](int32_t i) { largest = logits_[i] > largest ? logits_[i] : largest; });
      shared_.best_value[thread] = largest;
    });
    block_.each_thread([&](int thread) {
      float largest = shared_.best_value[0];
      for (int i = 1; i < kRouterThreads; ++i) {
        largest = shared_.best_value[i] > largest ? shared_.best_value[i] : largest;
      }
      double sum = 0;
      each_expert(thread, [&](int32_t i) { sum += scratch_.scores[i] = exponential(logits_[i] - largest); });
      shared_.sum[thread] = sum;
    });
    block_.each_thread([&](int thread) {
      const double sum = total();
      const bool finite = sum - sum == 0;
      if (!finite && thread == 0) report(InputError::LogitsNotFinite, 0);
      each_expert(thread, [&](int32_t i) { set_score(i, finite, static_cast<float>(scratch_.scores[i] / sum)); });
    });
  }

  MOLAE_HD double total() const {
    double sum = 0;
    for (int i = 0; i < kRouterThreads; ++i) sum += shared_.sum[i];
    return sum;
  }

  // Sigmoid scores; SparseMixer compares the logits themselves.
  MOLAE_HD void score_each() {
    block_.each_thread([&](int thread) {
      bool bad = false;
      each_expert(thread, [&](int32_t i) { bad |= !(logits_[i] < INFINITY); });
      shared_.bad[thread] = bad;
    });
    block_.each_thread([&](int thread) {
      bool bad = false;
      for (int i = 0; i < kRouterThreads; ++i) bad |= shared_.bad[i];
      if (bad && thread == 0) report(InputError::LogitsNotFinite, 0);
      const bool sigmoid_scores = args_.scoring == Scoring::Sigmoid;
      each_expert(thread, [&](int32_t i) { set_score(i, !bad, sigmoid_scores ? sigmoid(logits_[i]) : logits_[i]); });
    });
  }

  MOLAE_HD void add_bias() {
    block_.each_thread([&](int thread) {
      each_expert(thread, [&](int32_t i) {
        const float sum = scratch_.choice[i] + args_.bias[i];
        const bool finite = sum - sum == 0;
        if (!finite) report(InputError::BiasNotFinite, i);
        scratch_.choice[i] = finite ? sum : -INFINITY;
      });
    });
  }

  MOLAE_HD float group_score(int32_t group, int32_t size) const {
    const float* choice = scratch_.choice + group * size;
    float best = choice[0], second = -INFINITY;
    for (int32_t i = 1; i < size; ++i) {
      const float smaller = choice[i] < best ? choice[i] : best;
      second = smaller > second ? smaller : second;
      best = choice[i] > best ? choice[i] : best;
    }
    return args_.group_score == GroupScore::Max || size == 1 ? best : best + second;
  }

  // Takes the experts outside the chosen groups out of the choice.
  MOLAE_HD void limit_to_groups() {
    const int32_t size = args_.experts / args_.num_groups;
    block_.each_thread([&](int thread) {
      for (int32_t g = thread; g < args_.num_groups; g += kRouterThreads) scratch_.groups[g] = group_score(g, size);
    });
    block_.each_thread([&](int thread) {
      for (int32_t g = thread; g < args_.num_groups; g += kRouterThreads) {
        int32_t before = 0;
        for (int32_t other = 0; other < args_.num_groups; ++other) {
          before += better(scratch_.groups[other], other, scratch_.groups[g], g);
        }
        if (before < args_.chosen_groups) continue;
        for (int32_t i = g * size; i < (g + 1) * size; ++i) scratch_.choice[i] = -INFINITY;
      }
    });
  }

  // SparseMixer: whether an expert comes near the best one left.
  MOLAE_HD bool near(int32_t i, float largest) const {
    const float size = fabsf(logits_[i]) > largest ? fabsf(logits_[i]) : largest;
    const bool far = (largest - logits_[i]) / size > 2 * args_.jitter;
    return !far && scratch_.choice[i] > -INFINITY;
  }

  MOLAE_HD void take_best(int32_t k) {
    block_.each_thread([&](int thread) {
      float value = -INFINITY;
      int32_t index = args_.experts;
      each_expert(thread, [&](int32_t i) {
        if (!better(scratch_.choice[i], i, value, index)) return;  // nor is NaN
        value = scratch_.choice[i];
        index = i;
      });
      shared_.best_value[thread] = value;
      shared_.best_index[thread] = index;
    });
    MOLAE_UNROLL
    for (int half = kRouterThreads / 2; half > 0; half /= 2) {
      block_.each_thread([&](int thread) {
        const int other = thread + half;
        if (thread >= half || !better(shared_.best_value[other], shared_.best_index[other], shared_.best_value[thread],
                                      shared_.best_index[thread])) {
          return;
        }
        shared_.best_value[thread] = shared_.best_value[other];
        shared_.best_index[thread] = shared_.best_index[other];
      });
    }
    block_.each_thread([&](int thread) {
      if (thread != 0) return;
      ids_[k] = shared_.best_index[0];
      weights_[k] = scratch_.scores[shared_.best_index[0]];
    });
    if (args_.scoring == Scoring::SparseMixer) share_of_best(k);
    block_.each_thread([&](int thread) {
      if (thread == 0) scratch_.choice[shared_.best_index[0]] = NAN;
    });
  }

  MOLAE_HD void share_of_best(int32_t k) {
    block_.each_thread([&](int thread) {
      const float largest = shared_.best_value[0];
      double sum = 0;
      each_expert(thread, [&](int32_t i) {
        if (near(i, largest)) sum += exponential(scratch_.choice[i] - largest);
      });
      shared_.sum[thread] = sum;
    });
    block_.each_thread([&](int thread) {
      if (thread != 0) return;
      // Every other expert is masked: there is nothing to share with.
      if (shared_.best_value[0] == -INFINITY) report(InputError::LogitsNotFinite, 0);
      weights_[k] = static_cast<float>(1 / total());
    });
  }

  MOLAE_HD void finish() {
    block_.each_thread([&](int thread) {
      if (thread != 0) return;
      if (args_.renormalize) {
        float sum = 1e-20f;  // keeps scores that all underflowed from dividing 0 by 0 (DeepSeek-V3)
        for (int32_t k = 0; k < args_.top_k; ++k) sum += weights_[k];
        for (int32_t k = 0; k < args_.top_k; ++k) weights_[k] /= sum;
      }
      if (args_.scaling == 1) return;
      for (int32_t k = 0; k < args_.top_k; ++k) weights_[k] *= args_.scaling;
    });
  }

  const Block& block_;
  const RouterArgs& args_;
  RouterShared& shared_;
  RouterScratch scratch_;
  int64_t token_;
  const float* logits_;
  int32_t* ids_;
  float* weights_;
};

template <class Block>
MOLAE_HD void route_token(const Block& block, const RouterArgs& args, RouterShared& shared, float* floats) {
  TokenRouter<Block>(block, args, shared, router_scratch(floats, args.experts)).route();
}

// The arguments that the host fills in; logits [T, N] and the rest in the memory of the device.
inline RouterArgs router_args(const float* logits, int64_t experts, const RouterSpec& spec, int32_t* ids,
                              float* weights, unsigned long long* error) {
  return {logits,
          static_cast<int32_t>(experts),
          static_cast<int32_t>(spec.top_k),
          spec.scoring,
          spec.group_score,
          spec.renormalize,
          spec.scaling,
          spec.jitter,
          static_cast<int32_t>(spec.num_groups),
          static_cast<int32_t>(spec.chosen_groups),
          spec.correction_bias ? spec.correction_bias.as<const float>() : nullptr,
          ids,
          weights,
          error};
}

}  // namespace molae::cuda
