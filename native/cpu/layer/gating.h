#pragma once

#include <cstdint>

#include "core/activation.h"

namespace molae::cpu {

// out[i] = act(gate[i]) * up[i]; out may be gate.
void gate_times_up(Activation activation, const float* gate, const float* up, float* out, int64_t count);
void gate_times_up(Activation activation, const double* gate, const double* up, double* out, int64_t count);

}  // namespace molae::cpu
