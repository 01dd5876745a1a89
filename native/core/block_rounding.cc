#include "core/block_rounding.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "core/half.h"

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

// The scale as stored.
float stored(float scale) {
  const float rounded = f16_to_f32(f32_to_f16(scale));
  if (!std::isfinite(rounded)) fail(ErrorCode::InvalidArgument, "Weights need a scale of ", scale, ", beyond f16");
  return rounded;
}

void round_8_bits(std::span<float> block) {
  const float scale = std::fabs(extreme(block)) / 127.0f;
  const float read_back = stored(scale);
  for (float& value : block) {
    value = read_back == 0 ? 0 : std::clamp(std::round(value / scale), -127.0f, 127.0f) * read_back;
  }
}

void round_4_bits(std::span<float> block) {
  const float scale = extreme(block) / -8.0f;
  const float read_back = stored(scale);
  for (float& value : block) {
    value = read_back == 0 ? 0 : std::clamp(std::floor(value / scale + 0.5f), -8.0f, 7.0f) * read_back;
  }
}

}  // namespace

void round_to_blocks(std::span<float> values, int64_t cols, int bits) {
  const auto size = static_cast<int64_t>(values.size());
  if (cols < 1 || size % cols != 0) {
    fail(ErrorCode::InvalidArgument, "Expected whole rows of ", cols, " elements but received ", size);
  }
  if (bits != 8 && bits != 4) fail(ErrorCode::InvalidArgument, "Expected 8 or 4 bits but received ", bits);
  for (int64_t i = 0; i < size; ++i) {
    if (!std::isfinite(values[i])) fail(ErrorCode::NonFinite, "NaN or infinity at [", i / cols, ", ", i % cols, "]");
  }
  for (int64_t row = 0; row < size; row += cols) {
    for (int64_t begin = 0; begin < cols; begin += kRoundingBlock) {
      const auto block = values.subspan(row + begin, std::min(kRoundingBlock, cols - begin));
      bits == 8 ? round_8_bits(block) : round_4_bits(block);
    }
  }
}

}  // namespace molae
