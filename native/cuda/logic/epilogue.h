#pragma once

#include "core/activation.h"
#include "cuda/logic/number.h"

// What happens to a sum before it is stored.
namespace molae::cuda {

MOLAE_HD float exponential(float x) { return ::expf(x); }
MOLAE_HD double exponential(double x) { return ::exp(x); }
MOLAE_HD float error_function(float x) { return ::erff(x); }
MOLAE_HD double error_function(double x) { return ::erf(x); }
MOLAE_HD float hyperbolic_tangent(float x) { return ::tanhf(x); }
MOLAE_HD double hyperbolic_tangent(double x) { return ::tanh(x); }

// core/activation.h for device code.
template <class Real>
MOLAE_HD Real activated(Activation activation, Real x) {
  switch (activation) {
    case Activation::Silu:
      return x / (Real(1) + exponential(-x));
    case Activation::Gelu:
      return Real(0.5) * x * (Real(1) + error_function(x * Real(0.70710678118654752440)));
    case Activation::GeluTanh:
      return Real(0.5) * x *
             (Real(1) + hyperbolic_tangent(Real(0.79788456080286535588) * (x + Real(0.044715) * x * x * x)));
    case Activation::Relu2:
      return x > Real(0) ? x * x : Real(0);
  }
  return x;
}

template <class Real>
MOLAE_HD Real sigmoid(Real x) {
  return Real(1) / (Real(1) + exponential(-x));
}

}  // namespace molae::cuda
