#pragma once

#include <cmath>
#include <cstdint>
#include <string_view>

namespace molae {

// The activations of expert networks. Gelu is the exact one (erf), GeluTanh its usual approximation,
// Relu2 the square of the positive part.
enum class Activation : uint8_t { Silu, Gelu, GeluTanh, Relu2 };

Activation parse_activation(std::string_view name);  // "silu", "gelu", "gelu_tanh", "relu2"

template <class Real>
inline Real activate(Activation activation, Real x) {
  switch (activation) {
    case Activation::Silu:
      return x / (Real(1) + std::exp(-x));
    case Activation::Gelu:
      return Real(0.5) * x * (Real(1) + std::erf(x * Real(0.70710678118654752440)));
    case Activation::GeluTanh:
      return Real(0.5) * x * (Real(1) + std::tanh(Real(0.79788456080286535588) * (x + Real(0.044715) * x * x * x)));
    case Activation::Relu2:
      return x > Real(0) ? x * x : Real(0);
  }
  return x;
}

}  // namespace molae
