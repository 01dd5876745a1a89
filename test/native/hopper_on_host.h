#pragma once

#include "cuda/config/tile_choice.h"
#include "cuda/logic/hopper/passes.h"

// Hopper's grouped product on a model of the hardware (hopper_model.h).
namespace molae::test {

// Stands in for the driver's encoding of a tensor map. Fails where the driver would refuse.
cuda::WeightMap encode_on_host(const cuda::hopper::WeightMapArguments& arguments);

// The kernel of a tile, in `blocks` persistent blocks. For BF16 and F16.
template <class In>
void hopper_gemm_on_host(cuda::GemmTile tile, const cuda::hopper::HopperGemm<In>& args, int64_t blocks, uint64_t seed);

}  // namespace molae::test
