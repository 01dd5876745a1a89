#pragma once

#include <memory>

#include "core/backend.h"
#include "cpu/context.h"

namespace molae::cpu {

std::unique_ptr<LayerForward> make_layer_forward(Context context, ExpertLayer layer);

}  // namespace molae::cpu
