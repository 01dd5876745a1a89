#include "cpu/linear/packed_weight.h"

#include <algorithm>
#include <utility>

#include "cpu/system/compute_pool.h"

namespace molae::cpu {
namespace {

int64_t steps_of(int64_t inner) { return (inner + 1) / 2 * 2; }

// Calls body(column, first step, last one + 1): block after block, as more rows of a weight may meet in a set of the
// first cache than it has ways.
template <class Body>
void for_blocks(int64_t cols, int64_t inner, int64_t steps, Body body) {
  for (int64_t block = 0; block < cols; block += kPackedCols) {
    for (int64_t begin = 0; begin < inner; begin += steps) {
      for (int64_t col = block; col < std::min(cols, block + kPackedCols); ++col) {
        body(col, begin, std::min(inner, begin + steps));
      }
    }
  }
}

// to[k][col] = from[col][k], some steps at a time: those of a cache line of every column.
template <class Item>
void pack_group(const Item* from, int64_t inner, int64_t cols, Item* to) {
  constexpr int64_t kSteps = 64 / sizeof(Item);
  const int64_t width = packed_cols(cols);
  if (cols < width || inner % 2 != 0) std::fill(to, to + steps_of(inner) * width, Item{});
  for_blocks(cols, inner, kSteps, [&](int64_t col, int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) to[k * width + col] = from[col * inner + k];
  });
}

// Two neighbours of a row stay together.
void pack_pairs(const uint16_t* from, int64_t inner, int64_t cols, uint16_t* to) {
  constexpr int64_t kSteps = 32;
  const int64_t width = packed_cols(cols);
  if (cols < width || inner % 2 != 0) std::fill(to, to + steps_of(inner) * width, uint16_t{0});
  for_blocks(cols, inner, kSteps, [&](int64_t col, int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) to[(k / 2 * width + col) * 2 + k % 2] = from[col * inner + k];
  });
}

template <class Item>
const Item* items(const std::byte* data) {
  return reinterpret_cast<const Item*>(data);
}

// In bytes, from the beginning of a weight on.
int64_t column_begin(DType dtype, int64_t inner, int64_t col) {
  return col * steps_of(inner) * static_cast<int64_t>(item_size(dtype));
}

}  // namespace

bool PackedWeight::supports(DType dtype) { return dtype == DType::F32 || is_half(dtype); }

size_t PackedWeight::bytes_of(const Tensor& weight) {
  return static_cast<size_t>(column_begin(weight.dtype(), weight.cols(), packed_cols(weight.rows())));
}

PackedWeight::PackedWeight(std::shared_ptr<Buffer> buffer, size_t begin, int threads, const Tensor& weight,
                           PackedInputs inputs)
    : buffer_(std::move(buffer)),
      data_(static_cast<std::byte*>(buffer_->data()) + begin),
      dtype_(weight.dtype()),
      rows_(weight.rows()),
      inner_(weight.cols()),
      inputs_(inputs) {
  ComputePool::instance().parallel_for(threads, ceil_divide(rows_, kGroupCols), [&](int64_t index, int) {
    const int64_t col = index * kGroupCols;
    const int64_t cols = std::min(kGroupCols, rows_ - col);
    const std::byte* from = weight.as<const std::byte>() + col * row_bytes(dtype_, inner_);
    std::byte* to = data_ + group_begin(col);
    if (dtype_ == DType::BF16) {
      pack_pairs(items<uint16_t>(from), inner_, cols, reinterpret_cast<uint16_t*>(to));
    } else if (dtype_ == DType::F16) {
      pack_group(items<uint16_t>(from), inner_, cols, reinterpret_cast<uint16_t*>(to));
    } else {
      pack_group(items<float>(from), inner_, cols, reinterpret_cast<float*>(to));
    }
  });
}

PackedWeight PackedWeight::with_inputs(PackedInputs inputs) const {
  PackedWeight same = *this;
  same.inputs_ = inputs;
  return same;
}

const std::byte* PackedWeight::group(int64_t col, int64_t begin) const {
  const int64_t step_bytes = group_cols(col) * static_cast<int64_t>(item_size(dtype_));
  return data_ + group_begin(col) + begin * step_bytes;
}

int64_t PackedWeight::group_begin(int64_t col) const { return column_begin(dtype_, inner_, col); }

}  // namespace molae::cpu
