#pragma once

#include <cublas_v2.h>
#include <cuda_runtime_api.h>
#include <cusolver_common.h>

// Status codes of CUDA, cuBLAS and cuSOLVER as molae::Error.
namespace molae::cuda {

// `what` says what was being done: "copying 12 bytes to the GPU".
void check(cudaError_t status, const char* what);
void check(cublasStatus_t status, const char* what);
void check(cusolverStatus_t status, const char* what);

}  // namespace molae::cuda
