#pragma once

#include <cstdint>

#include "core/activation.h"

namespace molae::cpu {

// gate[i] = act(gate[i]) * up[i]
void gate_times_up(Activation activation, float* gate, const float* up, int64_t count);
void gate_times_up(Activation activation, double* gate, const double* up, int64_t count);

}  // namespace molae::cpu
