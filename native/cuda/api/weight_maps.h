#pragma once

#include "cuda/logic/hopper/weight_map.h"

namespace molae::cuda {

// By the driver. Throws DeviceUnavailable where it does not know how.
WeightMap encode_weight_map(const hopper::WeightMapArguments& arguments);

}  // namespace molae::cuda
