#pragma once

#include <cstdint>
#include <span>

// The 8-bit float of quantized checkpoints: 1 sign, 4 exponent (bias 7), 3 mantissa bits, no infinity (`E4M3FN`).
namespace molae {

float e4m3_to_f32(uint8_t code);

// A matrix in E4M3 with one scale for each block of rows and columns (DeepSeek-V3's `weight_scale_inv`).
struct BlockScales {
  std::span<const float> scales;  // [ceil(rows / block_rows), ceil(cols / block_cols)]
  int64_t block_rows;
  int64_t block_cols;
};

// Rows first_row .. first_row + rows of such a matrix to bf16, in place: `bytes` has room for the 2 rows cols bytes of
// the result, and its second half holds the codes. Throws InvalidArgument where sizes do not fit each other.
void expand_e4m3_rows(std::span<uint8_t> bytes, int64_t first_row, int64_t rows, int64_t cols,
                      const BlockScales& blocks);

}  // namespace molae
