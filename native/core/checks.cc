#include "core/checks.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "core/error.h"
#include "core/expect.h"

namespace molae {
namespace {

// BLAS and LAPACK count in 32 bits.
constexpr int64_t kMaxDim = std::numeric_limits<int32_t>::max();

void check_matrix(const Tensor& tensor, const char* name, const Backend* owner) {
  expect_owner(tensor, name, owner);
  expect_shape(tensor, name, {kAny, kAny});
  for (int64_t size : tensor.shape()) {
    if (size > kMaxDim) {
      fail(ErrorCode::InvalidArgument, "Expected sides below 2^31 for ", name, " but received ",
           shape_name(tensor.shape()));
    }
  }
  expect_floats(tensor, name);
}

void check_full_precision(const Tensor& tensor, const char* name) {
  if (is_half(tensor.dtype())) {
    fail(ErrorCode::DTypeMismatch, "Expected f32 or f64 for ", name, " but received ", dtype_name(tensor.dtype()),
         ": convert it first");
  }
}

void check_same_dtype(const Tensor& a, const char* a_name, const Tensor& b, const char* b_name) {
  if (a.dtype() != b.dtype()) {
    fail(ErrorCode::DTypeMismatch, "Expected ", dtype_name(a.dtype()), ", the dtype of ", a_name, ", for ", b_name,
         " but received ", dtype_name(b.dtype()));
  }
}

}  // namespace

void check_copy(const Tensor& from, const Tensor& to, const Backend* owner) {
  expect_owner(from, "from", owner);
  expect_owner(to, "to", owner);
  expect_shape(to, "to", from.shape());
  const bool numbers = from.dtype() != DType::I32 && to.dtype() != DType::I32;
  if (from.dtype() != to.dtype() && !numbers) {
    fail(ErrorCode::DTypeMismatch, "Cannot convert ", dtype_name(from.dtype()), " to ", dtype_name(to.dtype()));
  }
}

void check_transpose(const Tensor& from, const Tensor& to, const Backend* owner) {
  expect_owner(from, "from", owner);
  expect_owner(to, "to", owner);
  expect_shape(from, "from", {kAny, kAny});
  expect_shape(to, "to", {from.cols(), from.rows()});
  expect_dtype(to, "to", from.dtype());
  if (is_block(from.dtype())) {
    fail(ErrorCode::DTypeMismatch, "Expected a floating dtype for from but received ", dtype_name(from.dtype()));
  }
}

void check_gemm(const Gemm& problem, const Backend* owner) {
  check_matrix(problem.a, "a", owner);
  check_matrix(problem.b, "b", owner);
  check_matrix(problem.c, "out", owner);
  check_same_dtype(problem.a, "a", problem.b, "b");
  const bool widened = is_half(problem.a.dtype()) && problem.c.dtype() == DType::F32;
  if (!widened) check_same_dtype(problem.a, "a", problem.c, "out");
  const int64_t m = problem.a.dim(problem.transpose_a ? 1 : 0);
  const int64_t k = problem.a.dim(problem.transpose_a ? 0 : 1);
  const int64_t kb = problem.b.dim(problem.transpose_b ? 1 : 0);
  const int64_t n = problem.b.dim(problem.transpose_b ? 0 : 1);
  if (k != kb) {
    fail(ErrorCode::ShapeMismatch, "Inner sizes differ: a ", shape_name(problem.a.shape()),
         problem.transpose_a ? " transposed" : "", ", b ", shape_name(problem.b.shape()),
         problem.transpose_b ? " transposed" : "");
  }
  expect_shape(problem.c, "out", {m, n});
  if (problem.c.buffer() == problem.a.buffer() || problem.c.buffer() == problem.b.buffer()) {
    fail(ErrorCode::InvalidArgument, "out shares memory with an operand");
  }
}

void check_batched_gemm(const Gemm& stack, const Backend* owner) {
  for (const auto& [tensor, name] : {std::pair(&stack.a, "a"), {&stack.b, "b"}, {&stack.c, "out"}}) {
    expect_owner(*tensor, name, owner);
    expect_shape(*tensor, name, {kAny, kAny, kAny});
  }
  const int64_t batch = stack.a.dim(0);
  if (stack.b.dim(0) != batch) {
    fail(ErrorCode::ShapeMismatch, "Batches differ: a ", shape_name(stack.a.shape()), ", b ",
         shape_name(stack.b.shape()));
  }
  expect_shape(stack.c, "out", {batch, kAny, kAny});
  if (batch == 0) return;
  check_gemm({stack.a.slice(0), stack.b.slice(0), stack.c.slice(0), stack.transpose_a, stack.transpose_b, stack.alpha,
              stack.beta},
             owner);
}

void check_svd(const Tensor& a, const Tensor& u, const Tensor& s, const Tensor& vt, const Backend* owner) {
  check_matrix(a, "a", owner);
  check_full_precision(a, "a");
  const int64_t k = std::min(a.rows(), a.cols());
  expect_tensor(u, "u", a.dtype(), {a.rows(), k}, owner);
  expect_tensor(s, "s", a.dtype(), {k}, owner);
  expect_tensor(vt, "vt", a.dtype(), {k, a.cols()}, owner);
}

void check_eigh(const Tensor& a, const Tensor& values, const Tensor& vectors, const Backend* owner) {
  check_matrix(a, "a", owner);
  check_full_precision(a, "a");
  if (a.rows() != a.cols()) {
    fail(ErrorCode::ShapeMismatch, "Expected a square matrix for a but received ", shape_name(a.shape()));
  }
  expect_tensor(values, "values", a.dtype(), {a.rows()}, owner);
  check_matrix(vectors, "vectors", owner);
  expect_integer(vectors.rows(), "top", 0, a.rows());
  expect_tensor(vectors, "vectors", a.dtype(), {vectors.rows(), a.rows()}, owner);
}

void check_route(const Tensor& logits, const RouterSpec& spec, const Routing& routing, const Backend* owner) {
  expect_tensor(logits, "logits", DType::F32, {kAny, kAny}, owner);
  check_router(spec, logits.cols());
  if (spec.correction_bias) expect_owner(spec.correction_bias, "correctionBias", owner);
  expect_tensor(routing.ids, "ids", DType::I32, {logits.rows(), spec.top_k}, owner);
  expect_tensor(routing.weights, "weights", DType::F32, {logits.rows(), spec.top_k}, owner);
}

void check_routing(const Routing& routing, int64_t tokens, const Backend* owner) {
  expect_tensor(routing.ids, "routing.ids", DType::I32, {tokens, kAny}, owner);
  expect_tensor(routing.weights, "routing.weights", DType::F32, routing.ids.shape(), owner);
}

void check_forward(int64_t hidden_size, int64_t num_experts, const Tensor& x, const Routing& routing, const Tensor& y,
                   const Backend* owner) {
  check_matrix(x, "x", owner);
  check_matrix(y, "out", owner);
  check_same_dtype(x, "x", y, "out");
  expect_shape(x, "x", {kAny, hidden_size});
  expect_shape(y, "out", x.shape());
  if (x.buffer() == y.buffer()) fail(ErrorCode::InvalidArgument, "out shares memory with x");
  check_routing(routing, x.rows(), owner);
  if (routing.ids.cols() > num_experts) {
    fail(ErrorCode::InvalidArgument, "Expected at most ", num_experts, " experts a token for routing.ids but received ",
         routing.ids.cols());
  }
}

}  // namespace molae
