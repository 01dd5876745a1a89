#pragma once

#include <cublas_v2.h>

#include <string>

namespace molae::cuda {

// cuBLAS 13, opened at run time: the types of its functions come from its own header.
#define MOLAE_CUBLAS_FUNCTIONS(X) \
  X(cublasCreate_v2)              \
  X(cublasDestroy_v2)             \
  X(cublasGetVersion_v2)          \
  X(cublasSetStream_v2)           \
  X(cublasSetMathMode)            \
  X(cublasGemmEx_64)              \
  X(cublasGemmBatchedEx_64)       \
  X(cublasDsyrk_v2)               \
  X(cublasStrsm_v2)               \
  X(cublasDtrsm_v2)

struct Cublas {
#define MOLAE_DECLARE(name) decltype(&::name) name = nullptr;
  MOLAE_CUBLAS_FUNCTIONS(MOLAE_DECLARE)
#undef MOLAE_DECLARE
  std::string path;

  // Opens it on first use. Throws DeviceUnavailable.
  static const Cublas& instance();
};

}  // namespace molae::cuda
