#include "core/error.h"

namespace molae {

const char* code_name(ErrorCode code) {
  switch (code) {
    case ErrorCode::InvalidArgument:
      return "INVALID_ARGUMENT";
    case ErrorCode::ShapeMismatch:
      return "SHAPE_MISMATCH";
    case ErrorCode::DTypeMismatch:
      return "DTYPE_MISMATCH";
    case ErrorCode::DeviceMismatch:
      return "DEVICE_MISMATCH";
    case ErrorCode::Disposed:
      return "DISPOSED";
    case ErrorCode::NonFinite:
      return "NON_FINITE";
    case ErrorCode::OutOfMemory:
      return "OUT_OF_MEMORY";
    case ErrorCode::NoConvergence:
      return "NO_CONVERGENCE";
    case ErrorCode::DeviceUnavailable:
      return "DEVICE_UNAVAILABLE";
    case ErrorCode::Aborted:
      return "ABORTED";
    case ErrorCode::Internal:
      return "INTERNAL";
  }
  return "INTERNAL";
}

}  // namespace molae
