#include "cpu/decoder/attention.h"

#include <algorithm>
#include <cmath>

#include "cpu/linalg/blas.h"
#include "cpu/system/compute_pool.h"

namespace molae::cpu {
namespace {

// Queries that one task scores against all their keys.
constexpr int64_t kQueries = 64;

struct Task {
  const Sequence* sequence;
  int64_t head;
  int64_t query;  // first row of q
  int64_t queries;
};

// Softmax over the visible part [first, last) of a row of scores; the rest becomes 0.
void masked_softmax(float* scores, int64_t count, int64_t first, int64_t last, float scale) {
  const float largest = *std::max_element(scores + first, scores + last);
  float sum = 0;
  for (int64_t j = first; j < last; ++j) sum += scores[j] = std::exp(scale * (scores[j] - largest));
  for (int64_t j = first; j < last; ++j) scores[j] /= sum;
  std::fill(scores, scores + first, 0.0f);
  std::fill(scores + last, scores + count, 0.0f);
}

}  // namespace

void attention(Context context, const Tensor& q, const Tensor& keys, const Tensor& values,
               const std::vector<Sequence>& sequences, const AttentionSpec& spec, const Tensor& out) {
  std::vector<Task> tasks;
  int64_t longest = 0;
  for (const Sequence& s : sequences) {
    longest = std::max(longest, s.key_end - s.key_begin);
    for (int64_t query = s.query_begin; query < s.query_end; query += kQueries) {
      for (int64_t head = 0; head < spec.heads; ++head) {
        tasks.push_back({&s, head, query, std::min(kQueries, s.query_end - query)});
      }
    }
  }
  const int64_t q_stride = q.cols();
  const int64_t key_stride = keys.cols();
  const int64_t value_stride = values.cols();
  const int64_t out_stride = out.cols();
  float* scratch = context.workspace.get<float>(kScratch, kQueries * longest * context.threads);

  ComputePool::instance().parallel_for(context.threads, tasks.size(), [&](int64_t index, int participant) {
    const Task& task = tasks[index];
    const Sequence& s = *task.sequence;
    const int64_t kv_head = task.head / (spec.heads / spec.kv_heads);
    // The position of a query among the keys; later keys than the last query's are never needed.
    const int64_t position = (s.key_end - s.key_begin) - (s.query_end - s.query_begin) + (task.query - s.query_begin);
    const int64_t count = position + task.queries;
    float* scores = scratch + kQueries * longest * participant;
    const float* queries = q.as<const float>() + task.query * q_stride + task.head * spec.head_size;
    const float* key = keys.as<const float>() + s.key_begin * key_stride + kv_head * spec.head_size;
    const float* value = values.as<const float>() + s.key_begin * value_stride + kv_head * spec.value_size;
    blas::gemm(false, true, task.queries, count, spec.head_size, 1.0f, queries, q_stride, key, key_stride, 0.0f, scores,
               count);
    for (int64_t i = 0; i < task.queries; ++i) {
      const int64_t last = position + i + 1;
      const int64_t first = spec.window > 0 ? std::max<int64_t>(0, last - spec.window) : 0;
      masked_softmax(scores + i * count, count, first, last, spec.scale);
    }
    float* to = out.as<float>() + task.query * out_stride + task.head * spec.value_size;
    blas::gemm(false, false, task.queries, spec.value_size, count, 1.0f, scores, count, value, value_stride, 0.0f, to,
               out_stride);
  });
}

}  // namespace molae::cpu
