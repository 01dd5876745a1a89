#include "core/expect.h"

#include <string>

#include "core/error.h"

namespace molae {
namespace {

bool fits(const Shape& shape, const Shape& wanted) {
  if (shape.size() != wanted.size()) return false;
  for (size_t i = 0; i < shape.size(); ++i) {
    if (wanted[i] != kAny && shape[i] != wanted[i]) return false;
  }
  return true;
}

// "[any, 4]"
std::string wanted_name(const Shape& wanted) {
  std::string text = "[";
  for (const int64_t size : wanted) {
    if (text.size() > 1) text += ", ";
    text += size == kAny ? "any" : std::to_string(size);
  }
  return text + "]";
}

}  // namespace

void expect_owner(const Tensor& tensor, std::string_view name, const Backend* owner) {
  if (!tensor) fail(ErrorCode::Disposed, "Expected a tensor for ", name, " but received one that was disposed");
  if (tensor.owner() != owner) {
    fail(ErrorCode::DeviceMismatch, "Expected a tensor on this device for ", name,
         " but received one that lives on another");
  }
}

void expect_shape(const Tensor& tensor, std::string_view name, const Shape& wanted) {
  if (fits(tensor.shape(), wanted)) return;
  fail(ErrorCode::ShapeMismatch, "Expected shape ", wanted_name(wanted), " for ", name, " but received ",
       shape_name(tensor.shape()));
}

void expect_dtype(const Tensor& tensor, std::string_view name, DType wanted) {
  if (tensor.dtype() == wanted) return;
  fail(ErrorCode::DTypeMismatch, "Expected ", dtype_name(wanted), " for ", name, " but received ",
       dtype_name(tensor.dtype()));
}

void expect_floats(const Tensor& tensor, std::string_view name) {
  if (is_float(tensor.dtype())) return;
  fail(ErrorCode::DTypeMismatch, "Expected a floating dtype for ", name, " but received ", dtype_name(tensor.dtype()));
}

void expect_tensor(const Tensor& tensor, std::string_view name, DType dtype, const Shape& shape, const Backend* owner) {
  expect_owner(tensor, name, owner);
  expect_shape(tensor, name, shape);
  expect_dtype(tensor, name, dtype);
}

void expect_integer(int64_t value, std::string_view name, int64_t least, int64_t most) {
  if (value >= least && value <= most) return;
  fail(ErrorCode::InvalidArgument, "Expected ", least, " to ", most, " for ", name, " but received ", value);
}

}  // namespace molae
