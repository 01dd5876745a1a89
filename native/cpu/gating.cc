#include "cpu/gating.h"

#include "cpu/exponential.h"
#include "cpu/multiversion.h"

namespace molae::cpu {
namespace {

MOLAE_MULTIVERSION void silu_times(float* gate, const float* up, int64_t count) {
  for (int64_t i = 0; i < count; ++i) gate[i] = gate[i] / (1.0f + exp_flat(-gate[i])) * up[i];
}

// x (1 + tanh u) / 2 = x / (1 + exp(-2u))
MOLAE_MULTIVERSION void gelu_tanh_times(float* gate, const float* up, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const float x = gate[i];
    const float u = 0.79788456080286535588f * (x + 0.044715f * x * x * x);
    gate[i] = x / (1.0f + exp_flat(-2.0f * u)) * up[i];
  }
}

template <class Real>
void plain_times(Activation activation, Real* gate, const Real* up, int64_t count) {
  for (int64_t i = 0; i < count; ++i) gate[i] = activate(activation, gate[i]) * up[i];
}

}  // namespace

void gate_times_up(Activation activation, float* gate, const float* up, int64_t count) {
  switch (activation) {
    case Activation::Silu:
      return silu_times(gate, up, count);
    case Activation::GeluTanh:
      return gelu_tanh_times(gate, up, count);
    case Activation::Gelu:  // erf has no short form, and few models want it
    case Activation::Relu2:
      return plain_times(activation, gate, up, count);
  }
}

void gate_times_up(Activation activation, double* gate, const double* up, int64_t count) {
  plain_times(activation, gate, up, count);
}

}  // namespace molae::cpu
