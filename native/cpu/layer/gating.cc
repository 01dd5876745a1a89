#include "cpu/layer/gating.h"

#include "cpu/simd/exponential.h"
#include "cpu/simd/multiversion.h"

namespace molae::cpu {
namespace {

MOLAE_MULTIVERSION void silu_times(const float* gate, const float* up, float* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = gate[i] / (1.0f + exp_flat(-gate[i])) * up[i];
}

// x (1 + tanh u) / 2 = x / (1 + exp(-2u))
MOLAE_MULTIVERSION void gelu_tanh_times(const float* gate, const float* up, float* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const float x = gate[i];
    const float u = 0.79788456080286535588f * (x + 0.044715f * x * x * x);
    out[i] = x / (1.0f + exp_flat(-2.0f * u)) * up[i];
  }
}

template <class Real>
void plain_times(Activation activation, const Real* gate, const Real* up, Real* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = activate(activation, gate[i]) * up[i];
}

}  // namespace

void gate_times_up(Activation activation, const float* gate, const float* up, float* out, int64_t count) {
  switch (activation) {
    case Activation::Silu:
      return silu_times(gate, up, out, count);
    case Activation::GeluTanh:
      return gelu_tanh_times(gate, up, out, count);
    case Activation::Gelu:  // erf has no short form, and few models want it
    case Activation::Relu2:
      return plain_times(activation, gate, up, out, count);
  }
}

void gate_times_up(Activation activation, const double* gate, const double* up, double* out, int64_t count) {
  plain_times(activation, gate, up, out, count);
}

}  // namespace molae::cpu
