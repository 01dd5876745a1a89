#pragma once

#include "cuda/logic/host_device.h"

// Which sums a thread of a warpgroup has after wgmma: 64 rows by any multiple of 8 columns (PTX ISA, "Register
// fragments for wgmma.mma_async", figure of matrix D). Warp w has rows 16 w to 16 w + 15; in every block of 8 columns a
// thread has two neighbours of one row, and the two of 8 rows below.
namespace molae::cuda::hopper {

inline constexpr int kGroupThreads = 128;  // a warpgroup
inline constexpr int kGroupRows = 64;
inline constexpr int kFragmentRun = 2;  // sums with consecutive indices that are neighbours in a row

MOLAE_HD constexpr int fragment_sums(int columns) { return kGroupRows * columns / kGroupThreads; }

MOLAE_HD int fragment_row(int thread, int sum) { return thread / 32 * 16 + thread % 32 / 4 + sum / 2 % 2 * 8; }
MOLAE_HD int fragment_column(int thread, int sum) { return sum / 4 * 8 + thread % 4 * 2 + sum % 2; }

}  // namespace molae::cuda::hopper
