#pragma once

#include <cstdint>

#include "cuda/logic/hopper/swizzle.h"

// What wgmma is told of an operand in shared memory, 64 bits (PTX ISA, "Matrix descriptor format"; addresses and
// offsets in units of 16 bytes):
//   0-13 address, 16-29 leading dimension offset, 32-45 stride dimension offset, 49-51 base offset, 62-63 swizzle mode.
// An operand has its inner dimension in rows of 128 bytes. Then the leading offset is not used, the stride offset is
// the way from 8 rows to the next 8, and the base offset is 0 because tiles begin at multiples of 1024.
namespace molae::cuda::hopper {

inline constexpr uint64_t kSwizzle128 = 1;
inline constexpr int kInstructionInner = 16;  // halves that one wgmma multiplies

constexpr uint64_t descriptor_field(uint64_t bytes, int shift) { return (bytes >> 4 & 0x3fff) << shift; }

// `address`: of the operand's first row, in the window of shared memory.
MOLAE_HD uint64_t matrix_descriptor(uint32_t address) {
  constexpr uint64_t kLeading = uint64_t{1} << 16;  // by convention 1 where it is not used
  return (static_cast<uint64_t>(address) >> 4 & 0x3fff) | kLeading | descriptor_field(kSwizzleBytes, 32) |
         kSwizzle128 << 62;
}

// The same operand, `step` instructions further along the inner dimension: the tensor cores swizzle the address that
// they have computed, so inside of a row it moves as if there were no swizzle.
MOLAE_HD uint64_t advanced(uint64_t descriptor, int step) {
  constexpr int kBytes = kInstructionInner * 2;
  return descriptor + static_cast<uint64_t>(step) * (kBytes >> 4);
}

}  // namespace molae::cuda::hopper
