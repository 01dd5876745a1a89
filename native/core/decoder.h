#pragma once

#include <cstdint>
#include <vector>

#include "core/tensor/tensor.h"

namespace molae {

// A piece of a batch that attends to itself only. Its queries are the last rows of its keys: query j of q sees the keys
// up to position (keys - queries) + j.
struct Sequence {
  int64_t query_begin, query_end;  // rows of q and out
  int64_t key_begin, key_end;      // rows of keys and values
};

struct AttentionSpec {
  int64_t heads = 1;
  int64_t kv_heads = 1;  // divides heads: each serves heads / kv_heads of them
  int64_t head_size = 1;
  int64_t value_size = 1;  // of a value head, which may differ (multi-head latent attention)
  float scale = 1;         // of the scores, 1 / sqrt(head_size) as a rule
  int64_t window = 0;      // sliding window: a query sees this many keys at most; 0: all before it
};

// Which pairs of a head are rotated together: the halves of it (Llama, Qwen), or neighbours (DeepSeek).
enum class RotaryPairs : uint8_t { Halves, Neighbours };

struct RotarySpec {
  int64_t heads = 1;
  int64_t head_size = 1;
  int64_t offset = 0;  // first rotated element of a head; 2 * frequencies elements are rotated
  RotaryPairs pairs = RotaryPairs::Halves;
  float magnitude = 1;  // of cosine and sine (YaRN)
};

// Columns of heads: `width` elements from `from_offset` of each head on go to `to_offset` of the same head. With one
// head in `from`, all heads get that one.
struct HeadColumns {
  int64_t heads = 1;  // of to
  int64_t from_heads = 1;
  int64_t from_offset = 0;
  int64_t to_offset = 0;
  int64_t width = 1;
};

// What a decoder does beside its experts. Activations are f32, weights of any floating dtype but f64. What is wrong
// with the contents of arguments is thrown by the call, or, by a device of its own, by the next one that waits for it.
class Decoder {
 public:
  virtual ~Decoder() = default;

  // out [T, n] = the rows of table [V, n] that ids [T] i32 name.
  virtual void gather_rows(const Tensor& table, const Tensor& ids, const Tensor& out) = 0;
  // out [T, m] = x [T, n] weight^T, weight [m, n], + bias [m] where there is one.
  virtual void linear(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& out) = 0;
  // out = weight * x / sqrt(mean(x^2) + eps) over each group of weight's size of the last axis.
  virtual void rms_norm(const Tensor& x, const Tensor& weight, float eps, const Tensor& out) = 0;
  // Rotates heads of x [T, heads * head_size] in place by positions [T] i32 times frequencies [f] f32 (radians).
  virtual void rotary(const Tensor& x, const Tensor& positions, const Tensor& frequencies, const RotarySpec& spec) = 0;
  // out [T, heads * value_size] of q [T, heads * head_size] over keys [S, kv_heads * head_size] and values
  // [S, kv_heads * value_size].
  virtual void attention(const Tensor& q, const Tensor& keys, const Tensor& values,
                         const std::vector<Sequence>& sequences, const AttentionSpec& spec, const Tensor& out) = 0;
  // Copies columns of heads of from [T, from_heads * a] to heads of to [T, heads * b].
  virtual void copy_head_columns(const Tensor& from, const Tensor& to, const HeadColumns& columns) = 0;
  // to += from
  virtual void add(const Tensor& from, const Tensor& to) = 0;
  // losses [T] f64 = -log softmax(logits [T, V])[targets [T] i32], sums in f64. Throws NonFinite naming the row.
  virtual void cross_entropy(const Tensor& logits, const Tensor& targets, const Tensor& losses) = 0;
  // divergences [T] f64 = KL(softmax(p) || softmax(q)), agreements [T] i32 = both have their maximum in the same place.
  virtual void compare_distributions(const Tensor& p, const Tensor& q, const Tensor& divergences,
                                     const Tensor& agreements) = 0;
};

// The argument checks of every backend, as in core/checks.h.
void check_gather_rows(const Tensor& table, const Tensor& ids, const Tensor& out, const Backend* owner);
void check_linear(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& out, const Backend* owner);
void check_rms_norm(const Tensor& x, const Tensor& weight, float eps, const Tensor& out, const Backend* owner);
void check_rotary(const Tensor& x, const Tensor& positions, const Tensor& frequencies, const RotarySpec& spec,
                  const Backend* owner);
void check_attention(const Tensor& q, const Tensor& keys, const Tensor& values, const std::vector<Sequence>& sequences,
                     const AttentionSpec& spec, const Tensor& out, const Backend* owner);
void check_copy_head_columns(const Tensor& from, const Tensor& to, const HeadColumns& columns, const Backend* owner);
void check_add(const Tensor& from, const Tensor& to, const Backend* owner);
void check_cross_entropy(const Tensor& logits, const Tensor& targets, const Tensor& losses, const Backend* owner);
void check_compare_distributions(const Tensor& p, const Tensor& q, const Tensor& divergences, const Tensor& agreements,
                                 const Backend* owner);

}  // namespace molae
