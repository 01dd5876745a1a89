#pragma once

#include <cstddef>
#include <cstdint>

#include "core/tensor/dtype.h"
#include "cuda/logic/hopper/swizzle.h"

// What the copy engine is told of a weight matrix (cuTensorMapEncodeTiled in the driver's API). One box is what it
// copies at a time: 128 rows by 128 bytes of the inner dimension. Beyond the matrix it writes zeros.
namespace molae::cuda {

// As the driver encodes it: opaque, read by the copy engine from the GPU's memory.
struct alignas(128) WeightMap {
  uint64_t words[16];
};

namespace hopper {

inline constexpr int kBoxRows = 128;
inline constexpr int kBoxInner = kRowBytes / 2;  // halves
inline constexpr int kBoxBytes = kBoxRows * kRowBytes;

// Two dimensions, the inner one first, as the driver wants them.
struct WeightMapArguments {
  DType dtype;
  const void* address;
  uint64_t sizes[2];    // elements
  uint64_t row_stride;  // bytes
  uint32_t box[2];      // elements
  uint32_t element_steps[2];
};

inline WeightMapArguments weight_map_arguments(DType dtype, const void* data, int64_t rows, int64_t inner) {
  return {dtype,
          data,
          {static_cast<uint64_t>(inner), static_cast<uint64_t>(rows)},
          static_cast<uint64_t>(inner) * 2,
          {kBoxInner, kBoxRows},
          {1, 1}};
}

// The driver's conditions, as far as a matrix can break them. A matrix that does is multiplied by the other tiles.
inline bool has_weight_map(DType dtype, const void* data, int64_t rows, int64_t inner) {
  constexpr uint64_t kMost = uint64_t{1} << 32;
  const WeightMapArguments map = weight_map_arguments(dtype, data, rows, inner);
  const bool aligned = reinterpret_cast<uintptr_t>(data) % 16 == 0 && map.row_stride % 16 == 0;
  return is_half(dtype) && aligned && rows > 0 && inner > 0 && map.sizes[0] <= kMost && map.sizes[1] <= kMost;
}

}  // namespace hopper
}  // namespace molae::cuda
