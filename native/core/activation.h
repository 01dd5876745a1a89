#pragma once

#include <cmath>
#include <cstdint>
#include <string_view>

namespace molae {

// The activations of expert networks. Gelu is the exact one (erf), GeluTanh its usual approximation,
// Relu2 the square of the positive part. Written so that nothing cancels: their tails are as exact as the rest.
enum class Activation : uint8_t { Silu, Gelu, GeluTanh, Relu2 };

Activation parse_activation(std::string_view name);  // "silu", "gelu", "gelu_tanh", "relu2"

template <class Real>
inline Real activate(Activation activation, Real x) {
  switch (activation) {
    case Activation::Silu:
      return x / (Real(1) + std::exp(-x));
    case Activation::Gelu:
      return Real(0.5) * x * std::erfc(x * Real(-0.70710678118654752440));
    case Activation::GeluTanh:  // x (1 + tanh u) / 2 = x / (1 + exp(-2u))
      return x / (Real(1) + std::exp(Real(-1.59576912160573071176) * (x + Real(0.044715) * x * x * x)));
    case Activation::Relu2:
      return x < Real(0) ? Real(0) : x * x;  // NaN stays NaN
  }
  return x;
}

// The derivative of the activation at x.
template <class Real>
inline Real activation_slope(Activation activation, Real x) {
  switch (activation) {
    case Activation::Silu: {
      const Real sigmoid = Real(1) / (Real(1) + std::exp(-x));
      return sigmoid * (Real(1) + x * (Real(1) - sigmoid));
    }
    case Activation::Gelu:
      return Real(0.5) * std::erfc(x * Real(-0.70710678118654752440)) +
             x * std::exp(Real(-0.5) * x * x) * Real(0.39894228040143267794);
    case Activation::GeluTanh: {
      const Real slope_of_2u = Real(1.59576912160573071176) * (Real(1) + Real(0.134145) * x * x);
      const Real sigmoid =
          Real(1) / (Real(1) + std::exp(Real(-1.59576912160573071176) * (x + Real(0.044715) * x * x * x)));
      return sigmoid * (Real(1) + x * (Real(1) - sigmoid) * slope_of_2u);
    }
    case Activation::Relu2:
      return x < Real(0) ? Real(0) : Real(2) * x;
  }
  return Real(1);
}

}  // namespace molae
