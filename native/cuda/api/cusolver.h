#pragma once

#include <cusolverDn.h>

#include <string>

namespace molae::cuda {

// cuSOLVER 12, opened when something is first factorized.
#define MOLAE_CUSOLVER_FUNCTIONS(X) \
  X(cusolverDnCreate)               \
  X(cusolverDnDestroy)              \
  X(cusolverDnSetStream)            \
  X(cusolverDnCreateParams)         \
  X(cusolverDnDestroyParams)        \
  X(cusolverDnCreateGesvdjInfo)     \
  X(cusolverDnDestroyGesvdjInfo)    \
  X(cusolverDnXgesvd_bufferSize)    \
  X(cusolverDnXgesvd)               \
  X(cusolverDnXgesvdp_bufferSize)   \
  X(cusolverDnXgesvdp)              \
  X(cusolverDnSgesvdj_bufferSize)   \
  X(cusolverDnSgesvdj)              \
  X(cusolverDnDgesvdj_bufferSize)   \
  X(cusolverDnDgesvdj)              \
  X(cusolverDnXsyevd_bufferSize)    \
  X(cusolverDnXsyevd)               \
  X(cusolverDnXpotrf_bufferSize)    \
  X(cusolverDnXpotrf)

struct Cusolver {
#define MOLAE_DECLARE(name) decltype(&::name) name = nullptr;
  MOLAE_CUSOLVER_FUNCTIONS(MOLAE_DECLARE)
#undef MOLAE_DECLARE
  std::string path;

  // Opens it on first use. Throws DeviceUnavailable.
  static const Cusolver& instance();
};

}  // namespace molae::cuda
