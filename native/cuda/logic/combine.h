#pragma once

#include "cuda/logic/epilogue.h"
#include "cuda/logic/routing_plan.h"
#include "cuda/logic/split_sums.h"

// The weighted sums over a token's experts and groups. Each output element is summed by one thread, in the order of
// the slots: no atomics, the same result every time.
namespace molae::cuda {

// d[l] = sum of w[slot] e[row of slot] over the slots of latent row l: accumulation in the latent space.
template <class In>
struct LatentCombine {
  RoutingPlan plan;
  const float* weights;      // [tokens, top_k]
  SplitSums<In> expert_out;  // of all rows
  const int32_t* rank_of;    // [experts] columns that the expert's rows have
  In* latent;                // [latent rows, latent_stride]
  int64_t latent_stride;
};

inline constexpr int kCombineThreads = 256;

// Block index: a latent row, up to the bound. Rows that do not exist have nothing to do.
template <class Block, class In>
MOLAE_HD void combine_latent_row(const Block& block, const LatentCombine<In>& args) {
  const RoutingPlan& plan = args.plan;
  const int32_t row = block.index();
  if (row >= plan.group_begin[plan.groups]) return;
  const int32_t first = plan.latent_token[row] * plan.top_k;
  block.each_thread([&](int thread) {
    int32_t rank = 0;
    for (int32_t slot = first; slot < first + plan.top_k; ++slot) {
      if (plan.slot_latent[slot] == row) rank = args.rank_of[plan.ids[slot]];
    }
    for (int32_t col = thread; col < rank; col += block.threads()) {
      Sum<In> sum = 0;
      for (int32_t slot = first; slot < first + plan.top_k; ++slot) {
        if (plan.slot_latent[slot] != row) continue;
        sum += static_cast<Sum<In>>(args.weights[slot]) * args.expert_out.at(plan.row_of_slot[slot], col);
      }
      args.latent[row * args.latent_stride + col] = Convert<In, Sum<In>>::of(sum);
    }
  });
}

// y[t] = sum over its experts of w e (dense down), or over its groups of their outputs (latent down), + the shared
// expert.
template <class In>
struct OutputCombine {
  RoutingPlan plan;
  const float* weights;  // [tokens, top_k]
  bool latent;
  SplitSums<In> parts;          // of all rows, or latent rows; this one's and the next one's rows are 16-byte aligned
  SplitSums<In> shared_out;     // of all tokens; no data: there is no shared expert
  const Sum<In>* shared_scale;  // [tokens], or null for 1
  int32_t hidden_size;
  DType dtype;  // of y
  void* y;      // [tokens, hidden_size]
};

// A thread has some neighbouring columns of a token: loads of 16 bytes of f32 sums, and of a warp's columns the whole
// lines. Blocks are small, so that a token has as many as with a column a thread: one token's are all there are.
inline constexpr int kOutputThreads = 64;
inline constexpr int kOutputColumns = 4;

MOLAE_HD int64_t output_blocks_per_token(int64_t hidden_size) {
  return ceil_div(hidden_size, kOutputThreads * kOutputColumns);
}

// kCount columns from `col` on, a multiple of kCount.
template <int kCount, class In>
MOLAE_HD Pack<Sum<In>, kCount> output_columns(const OutputCombine<In>& args, int32_t token, int32_t col) {
  const RoutingPlan& plan = args.plan;
  Pack<Sum<In>, kCount> sums{};
  const auto add = [&](Sum<In> weight, const SplitSums<In>& rows, int32_t row) {
    const auto part = rows.template pack_at<kCount>(row, col);
    MOLAE_UNROLL
    for (int i = 0; i < kCount; ++i) sums.items[i] += weight * part.items[i];
  };
  const int32_t first = token * plan.top_k;
  for (int32_t slot = first; slot < first + plan.top_k; ++slot) {
    if (plan.row_of_slot[slot] < 0) continue;
    if (!args.latent) {
      add(static_cast<Sum<In>>(args.weights[slot]), args.parts, plan.row_of_slot[slot]);
    } else if (plan.slot_group[slot] >= 0) {
      add(1, args.parts, plan.slot_latent[slot]);
    }
  }
  if (args.shared_out.data) add(args.shared_scale ? args.shared_scale[token] : 1, args.shared_out, token);
  return sums;
}

// Blocks of one token follow each other: index = token * blocks per token + part of the columns.
template <class Block, class In>
MOLAE_HD void combine_output(const Block& block, const OutputCombine<In>& args) {
  const auto parts = static_cast<int32_t>(output_blocks_per_token(args.hidden_size));
  const int32_t token = block.index() / parts;
  const int64_t row = static_cast<int64_t>(token) * args.hidden_size;
  block.each_thread_unsynced([&](int thread) {
    const int32_t col = ((block.index() % parts) * kOutputThreads + thread) * kOutputColumns;
    if (col + kOutputColumns <= args.hidden_size) {
      store_pack_as(args.dtype, args.y, row + col, output_columns<kOutputColumns>(args, token, col));
      return;
    }
    MOLAE_ROLLED
    for (int32_t last = col; last < args.hidden_size; ++last) {
      store_pack_as(args.dtype, args.y, row + last, output_columns<1>(args, token, last));
    }
  });
}

// scale[t] = sigmoid(x[t] . gate_logit): a warp a token.
template <class In>
struct SharedScale {
  const In* x;  // [tokens, hidden_size]
  int32_t hidden_size;
  DType dtype;        // of logit
  const void* logit;  // [hidden_size]
  Sum<In>* scale;     // [tokens]
};

inline constexpr int kScaleThreads = 32;

template <class In>
struct ScaleShared {
  Sum<In> sums[kScaleThreads];
};

template <class Block, class In>
MOLAE_HD void shared_expert_scale(const Block& block, const SharedScale<In>& args, ScaleShared<In>& shared) {
  const int64_t token = block.index();
  block.each_thread([&](int thread) {
    Sum<In> sum = 0;
    for (int32_t i = thread; i < args.hidden_size; i += kScaleThreads) {
      sum +=
          Convert<Sum<In>, In>::of(args.x[token * args.hidden_size + i]) * load_as<Sum<In>>(args.dtype, args.logit, i);
    }
    shared.sums[thread] = sum;
  });
  block.each_thread([&](int thread) {
    if (thread != 0) return;
    Sum<In> sum = 0;
    for (int i = 0; i < kScaleThreads; ++i) sum += shared.sums[i];
    args.scale[token] = sigmoid(sum);
  });
}

}  // namespace molae::cuda
