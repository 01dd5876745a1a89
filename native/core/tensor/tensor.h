#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/tensor/dtype.h"

namespace molae {

class Backend;

// Memory on one device, freed with its last reference. Who uses it in a queued operation holds a reference.
class Buffer {
 public:
  Buffer(const Backend* owner, void* data, size_t bytes) : owner_(owner), data_(data), bytes_(bytes) {}
  virtual ~Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  const Backend* owner() const { return owner_; }
  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  const Backend* owner_;
  void* data_;
  size_t bytes_;
};

using Shape = std::vector<int64_t>;

std::string shape_name(const Shape& shape);  // "[3, 4]"
size_t element_count(const Shape& shape);    // throws InvalidArgument for negative sizes and overflow
// Throws InvalidArgument for blocks without rows, too.
size_t byte_count(DType dtype, const Shape& shape);

// A dense, row-major view of a buffer.
class Tensor {
 public:
  Tensor() = default;
  Tensor(std::shared_ptr<Buffer> buffer, size_t byte_offset, DType dtype, Shape shape);

  explicit operator bool() const { return buffer_ != nullptr; }
  const std::shared_ptr<Buffer>& buffer() const { return buffer_; }
  const Backend* owner() const { return buffer_->owner(); }
  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  int64_t rank() const { return static_cast<int64_t>(shape_.size()); }
  int64_t dim(size_t axis) const { return shape_[axis]; }
  int64_t rows() const { return shape_[0]; }
  int64_t cols() const { return shape_[1]; }
  size_t elements() const { return elements_; }
  size_t bytes() const { return bytes_; }
  void* data() const { return static_cast<std::byte*>(buffer_->data()) + byte_offset_; }

  template <class T>
  T* as() const {
    return static_cast<T*>(data());
  }

  // Of all these views, those that would cut blocks throw.
  Tensor slice(int64_t index) const;                   // [a, b, c] -> [b, c] at `index`
  Tensor row_range(int64_t begin, int64_t end) const;  // [a, ...] -> [end - begin, ...]
  Tensor reshape(Shape shape) const;                   // same elements, same memory

 private:
  size_t outer_bytes() const;  // of one of dim(0)

  std::shared_ptr<Buffer> buffer_;
  size_t byte_offset_ = 0;
  DType dtype_ = DType::F32;
  Shape shape_;
  size_t elements_ = 0;
  size_t bytes_ = 0;
};

}  // namespace molae
