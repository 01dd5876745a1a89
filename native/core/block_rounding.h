#pragma once

#include <cstdint>
#include <span>

namespace molae {

// Elements of a row that share a scale.
inline constexpr int64_t kRoundingBlock = 32;

// Rounds a matrix with rows of `cols` elements, in place, to what its quantized blocks would be read back as: blocks of
// 32 along each row (the last of a row may be shorter), one f16 scale d each, elements q d with q the nearest integer.
//   8 bits  d = max|w| / 127, q in -127 .. 127 (llama.cpp's q8_0)
//   4 bits  d = w / -8 for the w of largest magnitude, q in -8 .. 7 (llama.cpp's q4_0)
// As there, q is found with the scale before it is rounded to f16, and halves go away from zero (8 bits) or up (4
// bits). Throws NonFinite with the flat index of a NaN or infinity, InvalidArgument where sizes do not fit or a scale
// is beyond f16.
void round_to_blocks(std::span<float> values, int64_t cols, int bits);

}  // namespace molae
