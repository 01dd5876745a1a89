#pragma once

#include <cstdint>

#include "cuda/logic/host_device.h"

// A kernel of the decoder is a struct: its members are its arguments, and it has
//   kThreads, Shared             the shape of a block and its shared memory,
//   blocks()                     how many blocks there are,
//   run(block, shared)           what one of them does.
// kernels/decoder.cuh launches any of them on a GPU; the tests run the same blocks on the host.
namespace molae::cuda {

struct NoShared {};

MOLAE_HD int64_t blocks_of(int64_t count, int64_t per_block) { return (count + per_block - 1) / per_block; }

}  // namespace molae::cuda
