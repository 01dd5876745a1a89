#include "cpu/gating.h"

#include <bit>

#include "cpu/multiversion.h"
#include "cpu/vectors.h"

namespace molae::cpu {
namespace {

// exp without branches or calls, so that loops over it become vector code; within 2 units in the last place. The
// argument is cut at the ends of f32's range. Powers of two by the exponent's bits, the rest by the series.
MOLAE_INLINE float exp_flat(float x) {
  x = x < 88.0f ? x : 88.0f;
  x = x > -87.0f ? x : -87.0f;
  const float shifted = x * 1.44269504f + 0x1.8p23f;  // rounds: the integer ends up in the low bits
  const float n = shifted - 0x1.8p23f;
  const float r = (x - n * 0.693145751953125f) - n * 1.42860682030941723e-6f;  // ln 2 in two parts
  float series = 1.0f / 5040;
  series = series * r + 1.0f / 720;
  series = series * r + 1.0f / 120;
  series = series * r + 1.0f / 24;
  series = series * r + 1.0f / 6;
  series = series * r + 0.5f;
  series = series * r + 1.0f;
  series = series * r + 1.0f;
  return series * std::bit_cast<float>((std::bit_cast<uint32_t>(shifted) + 127) << 23);
}

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
