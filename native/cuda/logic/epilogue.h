#pragma once

#include "core/activation.h"
#include "cuda/logic/number.h"

// What happens to a sum before it is stored.
namespace molae::cuda {

MOLAE_HD float exponential(float x) { return ::expf(x); }
MOLAE_HD double exponential(double x) { return ::exp(x); }
MOLAE_HD float complementary_error_function(float x) { return ::erfcf(x); }
MOLAE_HD double complementary_error_function(double x) { return ::erfc(x); }

// core/activation.h for device code.
template <class Real>
MOLAE_HD Real activated(Activation activation, Real x) {
  switch (activation) {
    case Activation::Silu:
      return x / (Real(1) + exponential(-x));
    case Activation::Gelu:
      return Real(0.5) * x * complementary_error_function(x * Real(-0.70710678118654752440));
    case Activation::GeluTanh:
      return x / (Real(1) + exponential(Real(-1.59576912160573071176) * (x + Real(0.044715) * x * x * x)));
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
