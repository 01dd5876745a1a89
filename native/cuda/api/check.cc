#include "cuda/api/check.h"

#include "core/error.h"

namespace molae::cuda {
namespace {

// The device or its driver went away or never was there: nothing that this process does will bring it back.
bool device_is_gone(cudaError_t status) {
  switch (status) {
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorDevicesUnavailable:
    case cudaErrorSystemNotReady:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorInitializationError:
    case cudaErrorDeviceUninitialized:
    case cudaErrorContextIsDestroyed:
    case cudaErrorCudartUnloading:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorECCUncorrectable:
      return true;
    default:
      return false;
  }
}

// After one of these every further call fails with it as well.
bool context_is_lost(cudaError_t status) {
  switch (status) {
    case cudaErrorIllegalAddress:
    case cudaErrorMisalignedAddress:
    case cudaErrorLaunchFailure:
    case cudaErrorIllegalInstruction:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorHardwareStackError:
    case cudaErrorAssert:
    case cudaErrorLaunchTimeout:
      return true;
    default:
      return false;
  }
}

}  // namespace

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // an error that is not fatal is forgotten: the device stays usable
  const char* reason = cudaGetErrorString(status);
  if (status == cudaErrorMemoryAllocation) fail(ErrorCode::OutOfMemory, "Out of GPU memory while ", what);
  if (device_is_gone(status)) {
    fail(ErrorCode::DeviceUnavailable, "The GPU is not available (", what, "): ", reason, ". See nvidia-smi");
  }
  if (context_is_lost(status)) {
    fail(ErrorCode::Internal, "A GPU kernel failed (seen while ", what, "): ", reason,
         ". The GPU cannot be used again by this process: start a new one");
  }
  fail(ErrorCode::Internal, "CUDA failed while ", what, ": ", reason);
}

void check(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  if (status == CUBLAS_STATUS_ALLOC_FAILED) fail(ErrorCode::OutOfMemory, "Out of GPU memory in cuBLAS: ", what);
  fail(ErrorCode::Internal, "cuBLAS failed with status ", static_cast<int>(status), ": ", what);
}

void check(cusolverStatus_t status, const char* what) {
  if (status == CUSOLVER_STATUS_SUCCESS) return;
  if (status == CUSOLVER_STATUS_ALLOC_FAILED) fail(ErrorCode::OutOfMemory, "Out of GPU memory in cuSOLVER: ", what);
  fail(ErrorCode::Internal, "cuSOLVER failed with status ", static_cast<int>(status), ": ", what);
}

}  // namespace molae::cuda
