#include "core/decoder.h"
#include "core/error.h"
#include "core/expect.h"

namespace molae {
namespace {

// Sizes of heads: products of two fit 64 bits.
constexpr int64_t kMostSize = int64_t{1} << 31;

void check_weight(const Tensor& tensor, const char* name, const Shape& wanted, const Backend* owner) {
  expect_owner(tensor, name, owner);
  expect_shape(tensor, name, wanted);
  if (!is_float(tensor.dtype()) || tensor.dtype() == DType::F64) {
    fail(ErrorCode::DTypeMismatch, "Expected f32, f16 or bf16 for ", name, " but received ",
         dtype_name(tensor.dtype()));
  }
}

void check_size(int64_t value, const char* name) { expect_integer(value, name, 1, kMostSize); }

void check_range(int64_t begin, int64_t end, int64_t size, const char* name) {
  if (begin < 0 || end < begin || end > size) {
    fail(ErrorCode::InvalidArgument, "Rows ", begin, " to ", end, " of ", name, " are outside of its ", size);
  }
}

}  // namespace

void check_gather_rows(const Tensor& table, const Tensor& ids, const Tensor& out, const Backend* owner) {
  check_weight(table, "table", {kAny, kAny}, owner);
  expect_tensor(ids, "ids", DType::I32, {kAny}, owner);
  expect_tensor(out, "out", DType::F32, {ids.dim(0), table.cols()}, owner);
}

void check_linear(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& out, const Backend* owner) {
  check_weight(weight, "weight", {kAny, kAny}, owner);
  expect_tensor(x, "x", DType::F32, {kAny, weight.cols()}, owner);
  if (bias) check_weight(bias, "bias", {weight.rows()}, owner);
  expect_tensor(out, "out", DType::F32, {x.rows(), weight.rows()}, owner);
  if (out.buffer() == x.buffer() && out.data() == x.data()) {
    fail(ErrorCode::InvalidArgument, "out shares memory with x");
  }
}

void check_rms_norm(const Tensor& x, const Tensor& weight, float eps, const Tensor& out, const Backend* owner) {
  if (!(eps >= 0)) fail(ErrorCode::InvalidArgument, "Expected a non-negative number for eps but received ", eps);
  check_weight(weight, "weight", {kAny}, owner);
  expect_tensor(x, "x", DType::F32, {kAny, kAny}, owner);
  expect_tensor(out, "out", DType::F32, x.shape(), owner);
  if (weight.dim(0) < 1 || x.cols() % weight.dim(0) != 0) {
    fail(ErrorCode::ShapeMismatch, "Rows of ", x.cols(), " cannot be normalized in groups of ", weight.dim(0));
  }
}

void check_rotary(const Tensor& x, const Tensor& positions, const Tensor& frequencies, const RotarySpec& spec,
                  const Backend* owner) {
  check_size(spec.heads, "heads");
  check_size(spec.head_size, "headSize");
  expect_tensor(frequencies, "frequencies", DType::F32, {kAny}, owner);
  expect_tensor(positions, "positions", DType::I32, {kAny}, owner);
  expect_tensor(x, "x", DType::F32, {positions.dim(0), spec.heads * spec.head_size}, owner);
  if (spec.offset < 0 || spec.offset > spec.head_size || 2 * frequencies.dim(0) > spec.head_size - spec.offset) {
    fail(ErrorCode::InvalidArgument, 2 * frequencies.dim(0), " rotated elements from ", spec.offset,
         " on do not fit a head of ", spec.head_size);
  }
}

void check_attention(const Tensor& q, const Tensor& keys, const Tensor& values, const std::vector<Sequence>& sequences,
                     const AttentionSpec& spec, const Tensor& out, const Backend* owner) {
  check_size(spec.heads, "heads");
  check_size(spec.kv_heads, "kvHeads");
  check_size(spec.head_size, "headSize");
  check_size(spec.value_size, "valueSize");
  if (spec.heads % spec.kv_heads != 0) {
    fail(ErrorCode::InvalidArgument, spec.heads, " heads cannot share ", spec.kv_heads, " key/value heads evenly");
  }
  // The largest score is subtracted before it is scaled: with another sign it is the smallest.
  if (!(spec.scale > 0))
    fail(ErrorCode::InvalidArgument, "Expected a positive number for scale but received ", spec.scale);
  if (spec.window < 0) fail(ErrorCode::InvalidArgument, "Expected a non-negative window but received ", spec.window);
  expect_tensor(q, "q", DType::F32, {kAny, spec.heads * spec.head_size}, owner);
  expect_tensor(keys, "keys", DType::F32, {kAny, spec.kv_heads * spec.head_size}, owner);
  expect_tensor(values, "values", DType::F32, {keys.rows(), spec.kv_heads * spec.value_size}, owner);
  expect_tensor(out, "out", DType::F32, {q.rows(), spec.heads * spec.value_size}, owner);
  int64_t covered = 0;
  for (const Sequence& s : sequences) {
    check_range(s.query_begin, s.query_end, q.rows(), "q");
    check_range(s.key_begin, s.key_end, keys.rows(), "keys");
    if (s.query_begin != covered) fail(ErrorCode::InvalidArgument, "The sequences must cover q in order");
    if (s.key_end - s.key_begin < s.query_end - s.query_begin) {
      fail(ErrorCode::InvalidArgument, "A sequence has more queries than keys");
    }
    covered = s.query_end;
  }
  if (covered != q.rows())
    fail(ErrorCode::InvalidArgument, "The sequences cover ", covered, " of ", q.rows(), " queries");
}

void check_copy_head_columns(const Tensor& from, const Tensor& to, const HeadColumns& columns, const Backend* owner) {
  expect_tensor(from, "from", DType::F32, {kAny, kAny}, owner);
  expect_tensor(to, "to", DType::F32, {from.rows(), kAny}, owner);
  check_size(columns.heads, "heads");
  check_size(columns.width, "width");
  if (columns.from_heads != 1 && columns.from_heads != columns.heads) {
    fail(ErrorCode::InvalidArgument, columns.from_heads, " heads cannot be copied to ", columns.heads);
  }
  const auto fits_head = [&](const Tensor& tensor, int64_t heads, int64_t offset, const char* name) {
    if (tensor.cols() % heads != 0 || offset < 0 || offset + columns.width > tensor.cols() / heads) {
      fail(ErrorCode::InvalidArgument, columns.width, " columns from ", offset, " on are not in the ", heads,
           " heads of ", name, " ", shape_name(tensor.shape()));
    }
  };
  fits_head(from, columns.from_heads, columns.from_offset, "from");
  fits_head(to, columns.heads, columns.to_offset, "to");
}

void check_add(const Tensor& from, const Tensor& to, const Backend* owner) {
  expect_owner(from, "from", owner);
  expect_dtype(from, "from", DType::F32);
  expect_tensor(to, "to", DType::F32, from.shape(), owner);
}

void check_cross_entropy(const Tensor& logits, const Tensor& targets, const Tensor& losses, const Backend* owner) {
  expect_tensor(logits, "logits", DType::F32, {kAny, kAny}, owner);
  expect_tensor(targets, "targets", DType::I32, {logits.rows()}, owner);
  expect_tensor(losses, "losses", DType::F64, {logits.rows()}, owner);
}

void check_compare_distributions(const Tensor& p, const Tensor& q, const Tensor& divergences, const Tensor& agreements,
                                 const Backend* owner) {
  expect_tensor(p, "p", DType::F32, {kAny, kAny}, owner);
  if (p.cols() == 0) fail(ErrorCode::ShapeMismatch, "Expected a logit or more in rows for p but received none");
  expect_tensor(q, "q", DType::F32, p.shape(), owner);
  expect_tensor(divergences, "divergences", DType::F64, {p.rows()}, owner);
  expect_tensor(agreements, "agreements", DType::I32, {p.rows()}, owner);
}

}  // namespace molae
