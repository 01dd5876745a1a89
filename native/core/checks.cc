#include "core/checks.h"

#include <algorithm>
#include <limits>

#include "core/error.h"

namespace molae {
namespace {

// BLAS and LAPACK count in 32 bits.
constexpr int64_t kMaxDim = std::numeric_limits<int32_t>::max();

void check_matrix(const Tensor& tensor, const char* name, const Backend* owner) {
  check_owner(tensor, name, owner);
  if (tensor.rank() != 2) {
    fail(ErrorCode::ShapeMismatch, "Expected a matrix for ", name, " but received shape ", shape_name(tensor.shape()));
  }
  for (int64_t size : tensor.shape()) {
    if (size > kMaxDim) {
      fail(ErrorCode::InvalidArgument, name, " of shape ", shape_name(tensor.shape()), " has a side of 2^31 or more");
    }
  }
  if (!is_float(tensor.dtype())) {
    fail(ErrorCode::DTypeMismatch, "Expected a floating dtype for ", name, " but received ",
         dtype_name(tensor.dtype()));
  }
}

void check_full_precision(const Tensor& tensor, const char* name) {
  if (is_half(tensor.dtype())) {
    fail(ErrorCode::DTypeMismatch, "Expected f32 or f64 for ", name, " but received ", dtype_name(tensor.dtype()),
         ": convert it first");
  }
}

void check_same_dtype(const Tensor& a, const char* a_name, const Tensor& b, const char* b_name) {
  if (a.dtype() != b.dtype()) {
    fail(ErrorCode::DTypeMismatch, a_name, " is ", dtype_name(a.dtype()), " but ", b_name, " is ",
         dtype_name(b.dtype()));
  }
}

void check_shape(const Tensor& tensor, const char* name, const Shape& shape) {
  if (tensor.shape() != shape) {
    fail(ErrorCode::ShapeMismatch, "Expected shape ", shape_name(shape), " for ", name, " but received ",
         shape_name(tensor.shape()));
  }
}

void check_result(const Tensor& tensor, const char* name, DType dtype, const Shape& shape, const Backend* owner) {
  check_owner(tensor, name, owner);
  if (tensor.dtype() != dtype) {
    fail(ErrorCode::DTypeMismatch, "Expected ", dtype_name(dtype), " for ", name, " but received ",
         dtype_name(tensor.dtype()));
  }
  check_shape(tensor, name, shape);
}

}  // namespace

void check_owner(const Tensor& tensor, const char* name, const Backend* owner) {
  if (!tensor) fail(ErrorCode::Disposed, name, " was disposed");
  if (tensor.owner() != owner) fail(ErrorCode::DeviceMismatch, name, " lives on another device");
}

void check_copy(const Tensor& from, const Tensor& to, const Backend* owner) {
  check_owner(from, "from", owner);
  check_owner(to, "to", owner);
  check_shape(to, "to", from.shape());
  const bool numbers = from.dtype() != DType::I32 && to.dtype() != DType::I32;
  if (from.dtype() != to.dtype() && !numbers) {
    fail(ErrorCode::DTypeMismatch, "Cannot convert ", dtype_name(from.dtype()), " to ", dtype_name(to.dtype()));
  }
}

void check_transpose(const Tensor& from, const Tensor& to, const Backend* owner) {
  check_owner(from, "from", owner);
  check_owner(to, "to", owner);
  if (from.rank() != 2 || from.dtype() != to.dtype()) fail(ErrorCode::ShapeMismatch, "Expected matrices of one dtype");
  check_shape(to, "to", {from.cols(), from.rows()});
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
  if (problem.c.rows() != m || problem.c.cols() != n) {
    fail(ErrorCode::ShapeMismatch, "Expected shape [", m, ", ", n, "] for out but received ",
         shape_name(problem.c.shape()));
  }
  if (problem.c.buffer() == problem.a.buffer() || problem.c.buffer() == problem.b.buffer()) {
    fail(ErrorCode::InvalidArgument, "out shares memory with an operand");
  }
}

void check_svd(const Tensor& a, const Tensor& u, const Tensor& s, const Tensor& vt, const Backend* owner) {
  check_matrix(a, "a", owner);
  check_full_precision(a, "a");
  const int64_t k = std::min(a.rows(), a.cols());
  check_result(u, "u", a.dtype(), {a.rows(), k}, owner);
  check_result(s, "s", a.dtype(), {k}, owner);
  check_result(vt, "vt", a.dtype(), {k, a.cols()}, owner);
}

void check_eigh(const Tensor& a, const Tensor& values, const Tensor& vectors, const Backend* owner) {
  check_matrix(a, "a", owner);
  check_full_precision(a, "a");
  if (a.rows() != a.cols()) {
    fail(ErrorCode::ShapeMismatch, "Expected a square matrix for a but received ", shape_name(a.shape()));
  }
  check_result(values, "values", a.dtype(), {a.rows()}, owner);
  check_matrix(vectors, "vectors", owner);
  if (vectors.rows() > a.rows()) {
    fail(ErrorCode::InvalidArgument, "Expected 0 to ", a.rows(), " for top but received ", vectors.rows());
  }
  check_result(vectors, "vectors", a.dtype(), {vectors.rows(), a.rows()}, owner);
}

void check_route(const Tensor& logits, const RouterSpec& spec, const Routing& routing, const Backend* owner) {
  check_owner(logits, "logits", owner);
  if (logits.rank() != 2) {
    fail(ErrorCode::ShapeMismatch, "Expected shape [tokens, experts] for logits but received ",
         shape_name(logits.shape()));
  }
  if (logits.dtype() != DType::F32) {
    fail(ErrorCode::DTypeMismatch, "Expected f32 for logits but received ", dtype_name(logits.dtype()));
  }
  check_router(spec, logits.cols());
  if (spec.correction_bias) check_owner(spec.correction_bias, "correctionBias", owner);
  check_result(routing.ids, "ids", DType::I32, {logits.rows(), spec.top_k}, owner);
  check_result(routing.weights, "weights", DType::F32, {logits.rows(), spec.top_k}, owner);
}

void check_forward(int64_t hidden_size, const Tensor& x, const Routing& routing, const Tensor& y,
                   const Backend* owner) {
  check_matrix(x, "x", owner);
  check_matrix(y, "out", owner);
  check_same_dtype(x, "x", y, "out");
  if (x.cols() != hidden_size) {
    fail(ErrorCode::ShapeMismatch, "Expected shape [tokens, ", hidden_size, "] for x but received ",
         shape_name(x.shape()));
  }
  if (y.shape() != x.shape()) {
    fail(ErrorCode::ShapeMismatch, "Expected shape ", shape_name(x.shape()), " for out but received ",
         shape_name(y.shape()));
  }
  if (x.buffer() == y.buffer()) fail(ErrorCode::InvalidArgument, "out shares memory with x");
  check_owner(routing.ids, "routing.ids", owner);
  check_owner(routing.weights, "routing.weights", owner);
  if (routing.ids.dtype() != DType::I32 || routing.weights.dtype() != DType::F32) {
    fail(ErrorCode::DTypeMismatch, "Expected i32 ids and f32 weights for routing but received ",
         dtype_name(routing.ids.dtype()), " and ", dtype_name(routing.weights.dtype()));
  }
  if (routing.ids.rank() != 2 || routing.ids.rows() != x.rows() || routing.weights.shape() != routing.ids.shape()) {
    fail(ErrorCode::ShapeMismatch, "Expected ids and weights of shape [", x.rows(), ", topK] for routing but received ",
         shape_name(routing.ids.shape()), " and ", shape_name(routing.weights.shape()));
  }
}

}  // namespace molae
