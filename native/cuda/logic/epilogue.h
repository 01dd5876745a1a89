#pragma once

#include "core/activation.h"
#include "cuda/logic/number.h"

// What happens to a sum before it is stored.
namespace molae::cuda {

MOLAE_HD float exponential(float x) { return ::expf(x); }
MOLAE_HD double exponential(double x) { return ::exp(x); }
MOLAE_HD float complementary_error_function(float x) { return ::erfcf(x); }
MOLAE_HD double complementary_error_function(double x) { return ::erfc(x); }

// What activations are made of, as accurate as Real.
struct Accurate {
  template <class Real>
  static MOLAE_HD Real exponential(Real x) {
    return cuda::exponential(x);
  }
  template <class Real>
  static MOLAE_HD Real quotient(Real x, Real y) {
    return x / y;
  }
};

// The same for f32 that becomes a half: by the GPU's own exponential and reciprocal, a few instructions without a
// branch. Of the result the exponential is off by up to 2^-16, far from 0 (CUDA C++ Programming Guide, "Mathematical
// Functions": 2 + 1.173 |x| units of 2^-23), the quotient by 2^-22; rounding to a half is off by 2^-9 or 2^-12. Where
// the quotient's divisor is over 2^126 it is 0, as it is in halves.
struct ForHalves : Accurate {
#ifdef __CUDA_ARCH__
  static MOLAE_HD float exponential(float x) { return __expf(x); }
  static MOLAE_HD float quotient(float x, float y) { return __fdividef(x, y); }
#endif
};

// By what a dual product's results are stored as.
template <class Out>
struct FunctionsOf {
  using type = Accurate;
};
template <>
struct FunctionsOf<BF16> {
  using type = ForHalves;
};
template <>
struct FunctionsOf<F16> {
  using type = ForHalves;
};
template <class Out>
using FunctionsFor = typename FunctionsOf<Out>::type;

// core/activation.h for device code.
template <Activation kActivation, class Functions>
struct Activate {
  template <class Real>
  MOLAE_HD Real operator()(Real x) const {
    if constexpr (kActivation == Activation::Silu) {
      return Functions::quotient(x, Real(1) + Functions::exponential(-x));
    } else if constexpr (kActivation == Activation::Gelu) {
      return Real(0.5) * x * complementary_error_function(x * Real(-0.70710678118654752440));
    } else if constexpr (kActivation == Activation::GeluTanh) {
      const Real exponent = Real(-1.59576912160573071176) * (x + Real(0.044715) * x * x * x);
      return Functions::quotient(x, Real(1) + Functions::exponential(exponent));
    } else {
      static_assert(kActivation == Activation::Relu2);
      return x < Real(0) ? Real(0) : x * x;  // NaN stays NaN
    }
  }
};

// Calls visit(the activation as a function). To be outside of loops over sums: compilers leave a choice where it is.
template <class Functions, class Visit>
MOLAE_HD void with_activation(Activation activation, Visit visit) {
  switch (activation) {
    case Activation::Silu:
      return visit(Activate<Activation::Silu, Functions>());
    case Activation::Gelu:
      return visit(Activate<Activation::Gelu, Functions>());
    case Activation::GeluTanh:
      return visit(Activate<Activation::GeluTanh, Functions>());
    case Activation::Relu2:
      return visit(Activate<Activation::Relu2, Functions>());
  }
}

template <class Real>
MOLAE_HD Real activated(Activation activation, Real x) {
  switch (activation) {
    case Activation::Silu:
      return Activate<Activation::Silu, Accurate>()(x);
    case Activation::Gelu:
      return Activate<Activation::Gelu, Accurate>()(x);
    case Activation::GeluTanh:
      return Activate<Activation::GeluTanh, Accurate>()(x);
    case Activation::Relu2:
      return Activate<Activation::Relu2, Accurate>()(x);
  }
  return x;
}

template <class Real>
MOLAE_HD Real sigmoid(Real x) {
  return Real(1) / (Real(1) + exponential(-x));
}

}  // namespace molae::cuda
