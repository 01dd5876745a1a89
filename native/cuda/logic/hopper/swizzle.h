#pragma once

#include "cuda/logic/host_device.h"

// Where a tile's 16-byte vectors are in shared memory. A tile is rows of 128 bytes; the copy engine's 128-byte swizzle
// puts vector v of row r at v ^ (r % 8), so that the eight rows that the tensor cores read together are in different
// banks. The pattern repeats every 8 rows, 1024 bytes: a tile begins at a multiple of that.
//
// Three parties must agree on it: the copy engine (CU_TENSOR_MAP_SWIZZLE_128B), the tensor cores
// (logic/hopper/matrix_descriptor.h) and the producer, which copies gathered rows by this function.
namespace molae::cuda::hopper {

inline constexpr int kRowBytes = 128;
inline constexpr int kVectorBytes = 16;
inline constexpr int kRowVectors = kRowBytes / kVectorBytes;
inline constexpr int kSwizzleRows = 8;
inline constexpr int kSwizzleBytes = kSwizzleRows * kRowBytes;

// Bytes from the beginning of the tile.
MOLAE_HD int swizzled(int row, int vector) { return row * kRowBytes + (vector ^ row % kSwizzleRows) * kVectorBytes; }

}  // namespace molae::cuda::hopper
