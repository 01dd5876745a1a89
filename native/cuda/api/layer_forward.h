#pragma once

#include <memory>

#include "core/backend.h"
#include "cuda/api/gpu.h"

namespace molae::cuda {

// The layer's weights stay where they are; tables of pointers to them go to the GPU.
std::unique_ptr<LayerForward> make_layer_forward(Gpu& gpu, ExpertLayer layer);

}  // namespace molae::cuda
