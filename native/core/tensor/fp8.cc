#include "core/tensor/fp8.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/checked.h"
#include "core/error.h"
#include "core/tensor/half.h"

namespace molae {
namespace {

std::array<float, 256> make_table() {
  std::array<float, 256> table;
  for (int code = 0; code < 256; ++code) table[code] = e4m3_to_f32(static_cast<uint8_t>(code));
  return table;
}

}  // namespace

float e4m3_to_f32(uint8_t code) {
  const int exponent = (code >> 3) & 0xf;
  const int mantissa = code & 0x7;
  const float sign = code & 0x80 ? -1.0f : 1.0f;
  if (exponent == 0xf && mantissa == 0x7) return std::numeric_limits<float>::quiet_NaN();
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(mantissa), -9);
  return sign * std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
}

void expand_e4m3_rows(std::span<uint8_t> bytes, int64_t first_row, int64_t rows, int64_t cols,
                      const BlockScales& blocks) {
  // Far from where the products below could overflow.
  constexpr int64_t kMost = int64_t{1} << 30;
  const auto sensible = [](int64_t size, int64_t least) { return size >= least && size <= kMost; };
  if (!sensible(first_row, 0) || !sensible(rows, 0) || !sensible(cols, 0) || !sensible(blocks.block_rows, 1) ||
      !sensible(blocks.block_cols, 1)) {
    fail(ErrorCode::InvalidArgument, "Expected sizes below 2^30 for rows ", first_row, " + ", rows, " of ", cols,
         " in blocks of ", blocks.block_rows, " x ", blocks.block_cols);
  }
  const int64_t scales_a_row = ceil_divide(cols, blocks.block_cols);
  const int64_t scales = ceil_divide(first_row + rows, blocks.block_rows) * scales_a_row;
  if (bytes.size() != static_cast<size_t>(2 * rows * cols) || blocks.scales.size() < static_cast<size_t>(scales)) {
    fail(ErrorCode::InvalidArgument, "Expected ", 2 * rows * cols, " bytes and ", scales, " scales but received ",
         bytes.size(), " and ", blocks.scales.size());
  }
  static const std::array<float, 256> table = make_table();
  // Front to back: element i is written to bytes 2i and 2i + 1, never past the code that is read next.
  const uint8_t* code = bytes.data() + rows * cols;
  uint8_t* out = bytes.data();
  for (int64_t row = first_row; row < first_row + rows; ++row) {
    const float* row_scales = blocks.scales.data() + (row / blocks.block_rows) * scales_a_row;
    for (int64_t begin = 0; begin < cols; begin += blocks.block_cols) {
      const float scale = row_scales[begin / blocks.block_cols];
      const int64_t end = std::min(cols, begin + blocks.block_cols);
      for (int64_t col = begin; col < end; ++col, ++code, out += 2) {
        const uint16_t value = f32_to_bf16(table[*code] * scale);
        std::memcpy(out, &value, sizeof value);
      }
    }
  }
}

}  // namespace molae
