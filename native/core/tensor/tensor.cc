#include "core/tensor/tensor.h"

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

size_t byte_count(DType dtype, const Shape& shape) {
  if (!is_block(dtype)) return checked_mul(element_count(shape), item_size(dtype));
  if (shape.size() < 2) {
    fail(ErrorCode::InvalidArgument, "Blocks of ", dtype_name(dtype),
         " need rows: expected at least 2 sizes but received ", shape_name(shape));
  }
  const Shape outer(shape.begin(), shape.end() - 1);
  element_count(shape);
  return checked_mul(element_count(outer), row_bytes(dtype, static_cast<size_t>(shape.back())));
}

Tensor::Tensor(std::shared_ptr<Buffer> buffer, size_t byte_offset, DType dtype, Shape shape)
    : buffer_(std::move(buffer)),
      byte_offset_(byte_offset),
      dtype_(dtype),
      shape_(std::move(shape)),
      elements_(element_count(shape_)),
      bytes_(byte_count(dtype_, shape_)) {
  const size_t end = checked_add(byte_offset_, bytes_);
  if (end > buffer_->bytes()) {
    fail(ErrorCode::ShapeMismatch, "A ", dtype_name(dtype), " tensor of shape ", shape_name(shape_), " needs ", end,
         " bytes but its buffer has ", buffer_->bytes());
  }
}

size_t Tensor::outer_bytes() const { return dim(0) == 0 ? 0 : bytes_ / static_cast<size_t>(dim(0)); }

Tensor Tensor::slice(int64_t index) const {
  if (rank() == 0 || index < 0 || index >= dim(0)) {
    fail(ErrorCode::InvalidArgument, "Index ", index, " is outside of shape ", shape_name(shape_));
  }
  return Tensor(buffer_, byte_offset_ + static_cast<size_t>(index) * outer_bytes(), dtype_,
                Shape(shape_.begin() + 1, shape_.end()));
}

Tensor Tensor::row_range(int64_t begin, int64_t end) const {
  if (rank() == 0 || begin < 0 || end < begin || end > dim(0)) {
    fail(ErrorCode::InvalidArgument, "Rows ", begin, " to ", end, " are outside of shape ", shape_name(shape_));
  }
  Shape shape = shape_;
  shape[0] = end - begin;
  return Tensor(buffer_, byte_offset_ + static_cast<size_t>(begin) * outer_bytes(), dtype_, std::move(shape));
}

Tensor Tensor::reshape(Shape shape) const {
  if (element_count(shape) != elements_) {
    fail(ErrorCode::ShapeMismatch, "Cannot reshape ", shape_name(shape_), " to ", shape_name(shape));
  }
  if (is_block(dtype_) && (shape.empty() || shape.back() != shape_.back())) {
    fail(ErrorCode::ShapeMismatch, "Cannot reshape ", dtype_name(dtype_), " rows of ", shape_.back(), " to ",
         shape_name(shape), ": blocks go along the rows");
  }
  return Tensor(buffer_, byte_offset_, dtype_, std::move(shape));
}

}  // namespace molae
