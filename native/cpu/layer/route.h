#pragma once

#include "core/routing.h"
#include "cpu/context.h"

namespace molae::cpu {

// logits [T, N] f32 to ids [T, K] i32 and weights [T, K] f32.
void route(Context context, const Tensor& logits, const RouterSpec& spec, const Routing& routing);

}  // namespace molae::cpu
