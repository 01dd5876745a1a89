#pragma once

#include <functional>

#include "cuda/config/tile_choice.h"
#include "cuda/logic/hopper/passes.h"

// Hopper's grouped product on a model of the hardware (hopper_model.h).
namespace molae::test {

// Stands in for the driver's encoding of a tensor map. Fails where the driver would refuse.
cuda::WeightMap encode_on_host(const cuda::hopper::WeightMapArguments& arguments);

// The kernel of a tile, in `blocks` persistent blocks. For BF16 and F16. Calls after_previous() where the kernel waits
// for the one before it. Returns how many boxes of weights were on their way before that.
template <class In>
int64_t hopper_gemm_on_host(
    cuda::GemmTile tile, const cuda::hopper::HopperGemm<In>& args, int64_t blocks, uint64_t seed,
    const std::function<void()>& after_previous = [] {});

}  // namespace molae::test
