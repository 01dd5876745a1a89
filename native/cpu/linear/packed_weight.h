#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/backend.h"
#include "core/tensor/tensor.h"

namespace molae::cpu {

// Columns of a product that lie together in a packed weight: a vector of AVX-512, two of AVX2.
constexpr int64_t kPackedCols = 16;

// A weight [out, inner] in the order in which products read it, in its own dtype: blocks of kPackedCols of its rows
// (columns of a product), one after the other, of which each has
//   f32, f16: [inner][kPackedCols]       bf16: [inner / 2][kPackedCols][2]
// Columns that the last block lacks, and the second of the last two steps of an odd inner size, are zeros. So a product
// reads long runs of memory, whatever the shape. On a Xeon it then needs a fifth more time than the longer of reading
// and computing takes (f32, 12 to 24 rows), where with rows of weights it took two thirds more, or twice as long.
class PackedWeight {
 public:
  // f32, bf16, f16.
  static bool supports(DType dtype);

  PackedWeight() = default;
  // A copy, in memory of the backend.
  PackedWeight(Backend& backend, int threads, const Tensor& weight, PackedInputs inputs = PackedInputs::F32);
  // The same memory.
  PackedWeight with_inputs(PackedInputs inputs) const;

  // Whether products round their inputs to bf16 first: with weights of bf16 only.
  bool rounds_inputs() const { return inputs_ == PackedInputs::BF16 && dtype_ == DType::BF16; }
  DType dtype() const { return dtype_; }
  int64_t rows() const { return rows_; }
  int64_t cols() const { return inner_; }
  int64_t dim(size_t axis) const { return axis == 0 ? rows_ : inner_; }
  size_t bytes() const { return buffer_->bytes(); }

  // Of the block that begins with column `col`, from step `begin` on, an even one.
  const std::byte* block(int64_t col, int64_t begin) const;
  int64_t block_bytes() const;  // from block to block

 private:
  std::shared_ptr<Buffer> buffer_;
  DType dtype_ = DType::F32;
  int64_t rows_ = 0;
  int64_t inner_ = 0;
  PackedInputs inputs_ = PackedInputs::F32;
};

}  // namespace molae::cpu
