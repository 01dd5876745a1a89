#pragma once

#include <memory>

#include "core/backend.h"
#include "cpu/context.h"

namespace molae::cpu {

std::unique_ptr<LayerForward> make_layer_forward(Backend& backend, Context context, const ExpertLayer& layer);

}  // namespace molae::cpu
