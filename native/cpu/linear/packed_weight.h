#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/backend.h"
#include "core/checked.h"
#include "core/tensor/tensor.h"

namespace molae::cpu {

// Columns of a product come in blocks of so many: a vector of AVX-512, two of AVX2.
constexpr int64_t kPackedCols = 16;

// Columns that kernels compute together: a group.
constexpr int64_t kGroupCols = 3 * kPackedCols;

// Columns with those that a block fills up.
constexpr int64_t packed_cols(int64_t cols) { return round_up(cols, kPackedCols); }

// A weight [out, inner] in the order in which products read it, in its own dtype: groups of kGroupCols of its rows
// (columns of a product), one after the other, of which each has
//   f32, f16: [inner][its columns]       bf16: [inner / 2][its columns][2]
// The last group has fewer columns where the weight has: whole blocks. Columns that the last block lacks, and the
// second of the last two steps of an odd inner size, are zeros. So a product reads one run of memory from its first
// column to its last, whatever the shape, which processors follow by themselves: on a Zen 4, where the three blocks of
// a group lay one after the other, kernels of one row and 512 steps had as little as 68% of the rate. On a Xeon already
// those needed a fifth more time than the longer of reading and computing takes (f32, 12 to 24 rows), where with rows
// of weights it took two thirds more, or twice as long.
class PackedWeight {
 public:
  // f32, bf16, f16.
  static bool supports(DType dtype);

  // What the copy of a weight takes: whole cache lines.
  static size_t bytes_of(const Tensor& weight);

  PackedWeight() = default;
  // A copy in `buffer`, from byte `begin` on.
  PackedWeight(std::shared_ptr<Buffer> buffer, size_t begin, int threads, const Tensor& weight,
               PackedInputs inputs = PackedInputs::F32);
  // The same memory.
  PackedWeight with_inputs(PackedInputs inputs) const;

  // Whether products round their inputs to bf16 first: with weights of bf16 only.
  bool rounds_inputs() const { return inputs_ == PackedInputs::BF16 && dtype_ == DType::BF16; }
  DType dtype() const { return dtype_; }
  int64_t rows() const { return rows_; }
  int64_t cols() const { return inner_; }
  int64_t dim(size_t axis) const { return axis == 0 ? rows_ : inner_; }
  size_t bytes() const { return static_cast<size_t>(group_begin(packed_cols(rows_))); }

  // Of the group that begins with column `col`, from step `begin` on, an even one.
  const std::byte* group(int64_t col, int64_t begin) const;
  // Its columns, with those that a block fills up.
  int64_t group_cols(int64_t col) const { return std::min(kGroupCols, packed_cols(rows_ - col)); }

 private:
  // In bytes: where a group begins, from the beginning on.
  int64_t group_begin(int64_t col) const;

  std::shared_ptr<Buffer> buffer_;
  std::byte* data_ = nullptr;
  DType dtype_ = DType::F32;
  int64_t rows_ = 0;
  int64_t inner_ = 0;
  PackedInputs inputs_ = PackedInputs::F32;
};

}  // namespace molae::cpu
