#pragma once

#include <cstdint>
#include <span>

#include "core/tensor/dtype.h"

// Quantized weights: every row of a matrix in blocks of 32 elements (kBlock), each q d with one f16 scale d and small
// integers q. The bytes are those of llama.cpp's q8_0 and q4_0; the last block of a row is filled up with zeros.
namespace molae {

// d = max|w| / 127, q in -127 .. 127
struct Q8Block {
  uint16_t scale;
  int8_t values[kBlock];
};

// d = w / -8 for the w of largest magnitude, q in -8 .. 7, stored as q + 8: element i in the lower half of pairs[i],
// element 16 + i in the upper half.
struct Q4Block {
  uint16_t scale;
  uint8_t pairs[kBlock / 2];
};

static_assert(sizeof(Q8Block) == 34 && sizeof(Q4Block) == 18);

// One row to the nearest blocks. As llama.cpp does it, q is found with the scale before that is rounded to f16, and
// halves go away from zero (8 bits) or up (4 bits). Throws NonFinite with row and column of a NaN or infinity,
// InvalidArgument where a scale is beyond f16; `index` is the row's, for these messages.
void to_blocks(DType dtype, std::span<const float> row, int64_t index, void* blocks);

}  // namespace molae
