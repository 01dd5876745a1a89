#include "core/tensor/blocks.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/error.h"
#include "core/tensor/half.h"

namespace molae {
namespace {

// The element of largest magnitude, the first of equals.
float extreme(std::span<const float> block) {
  float found = 0;
  for (float value : block) {
    if (std::fabs(value) > std::fabs(found)) found = value;
  }
  return found;
}

uint16_t stored(float scale) {
  const uint16_t bits = f32_to_f16(scale);
  if (!std::isfinite(f16_to_f32(bits))) {
    fail(ErrorCode::InvalidArgument, "Weights need a scale of ", scale, ", beyond f16");
  }
  return bits;
}

int nearest_of_8_bits(float value, float scale) {
  return static_cast<int>(std::clamp(std::round(value / scale), -127.0f, 127.0f));
}

int nearest_of_4_bits(float value, float scale) {
  return static_cast<int>(std::clamp(std::floor(value / scale + 0.5f), -8.0f, 7.0f));
}

// A scale that f16 cannot tell from 0 leaves nothing of a block.
Q8Block to_q8(std::span<const float> values) {
  const float scale = std::fabs(extreme(values)) / 127.0f;
  Q8Block block{stored(scale), {}};
  if (f16_to_f32(block.scale) == 0) return block;
  for (size_t i = 0; i < values.size(); ++i) block.values[i] = static_cast<int8_t>(nearest_of_8_bits(values[i], scale));
  return block;
}

Q4Block to_q4(std::span<const float> values) {
  constexpr size_t kHalf = kBlock / 2;
  const float scale = extreme(values) / -8.0f;
  Q4Block block{stored(scale), {}};
  const bool zero = f16_to_f32(block.scale) == 0;
  const auto nibble = [&](size_t i) {
    return static_cast<uint8_t>(8 + (zero || i >= values.size() ? 0 : nearest_of_4_bits(values[i], scale)));
  };
  for (size_t i = 0; i < kHalf; ++i) block.pairs[i] = static_cast<uint8_t>(nibble(i) | nibble(i + kHalf) << 4);
  return block;
}

}  // namespace

void to_blocks(DType dtype, std::span<const float> row, int64_t index, void* blocks) {
  for (size_t i = 0; i < row.size(); ++i) {
    if (!std::isfinite(row[i])) fail(ErrorCode::NonFinite, "NaN or infinity at [", index, ", ", i, "]");
  }
  auto* to = static_cast<std::byte*>(blocks);
  for (size_t begin = 0; begin < row.size(); begin += kBlock) {
    const auto values = row.subspan(begin, std::min<size_t>(kBlock, row.size() - begin));
    if (dtype == DType::Q8) {
      const Q8Block block = to_q8(values);
      std::memcpy(to, &block, sizeof block);
      to += sizeof block;
    } else {
      const Q4Block block = to_q4(values);
      std::memcpy(to, &block, sizeof block);
      to += sizeof block;
    }
  }
}

}  // namespace molae
