#include "core/tensor.h"

#include "core/checked.h"
#include "core/error.h"

namespace molae {

std::string shape_name(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

size_t element_count(const Shape& shape) {
  size_t count = 1;
  for (int64_t size : shape) {
    if (size < 0) fail(ErrorCode::InvalidArgument, "Negative size in shape ", shape_name(shape));
    count = checked_mul(count, static_cast<size_t>(size));
  }
  return count;
}

Tensor::Tensor(std::shared_ptr<Buffer> buffer, size_t byte_offset, DType dtype, Shape shape)
    : buffer_(std::move(buffer)),
      byte_offset_(byte_offset),
      dtype_(dtype),
      shape_(std::move(shape)),
      elements_(element_count(shape_)) {
  const size_t end = checked_add(byte_offset_, checked_mul(elements_, item_size(dtype_)));
  if (end > buffer_->bytes()) {
    fail(ErrorCode::ShapeMismatch, "A ", dtype_name(dtype), " tensor of shape ", shape_name(shape_), " needs ", end,
         " bytes but its buffer has ", buffer_->bytes());
  }
}

Tensor Tensor::slice(int64_t index) const {
  if (rank() == 0 || index < 0 || index >= dim(0)) {
    fail(ErrorCode::InvalidArgument, "Index ", index, " is outside of shape ", shape_name(shape_));
  }
  Tensor range = row_range(index, index + 1);
  return range.reshape(Shape(shape_.begin() + 1, shape_.end()));
}

Tensor Tensor::row_range(int64_t begin, int64_t end) const {
  if (rank() == 0 || begin < 0 || end < begin || end > dim(0)) {
    fail(ErrorCode::InvalidArgument, "Rows ", begin, " to ", end, " are outside of shape ", shape_name(shape_));
  }
  Shape inner(shape_.begin() + 1, shape_.end());
  const size_t row_bytes = element_count(inner) * item_size(dtype_);
  Shape shape = shape_;
  shape[0] = end - begin;
  return Tensor(buffer_, byte_offset_ + static_cast<size_t>(begin) * row_bytes, dtype_, std::move(shape));
}

Tensor Tensor::reshape(Shape shape) const {
  if (element_count(shape) != elements_) {
    fail(ErrorCode::ShapeMismatch, "Cannot reshape ", shape_name(shape_), " to ", shape_name(shape));
  }
  return Tensor(buffer_, byte_offset_, dtype_, std::move(shape));
}

}  // namespace molae
