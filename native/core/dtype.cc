#include "core/dtype.h"

#include "core/error.h"

namespace molae {

size_t item_size(DType dtype) {
  switch (dtype) {
    case DType::F64:
      return 8;
    case DType::F32:
    case DType::I32:
      return 4;
    case DType::F16:
    case DType::BF16:
      return 2;
  }
  fail(ErrorCode::Internal, "Unknown dtype ", static_cast<int>(dtype));
}

std::string_view dtype_name(DType dtype) {
  switch (dtype) {
    case DType::F32:
      return "f32";
    case DType::F64:
      return "f64";
    case DType::F16:
      return "f16";
    case DType::BF16:
      return "bf16";
    case DType::I32:
      return "i32";
  }
  return "?";
}

DType parse_dtype(std::string_view name) {
  for (DType dtype : {DType::F32, DType::F64, DType::F16, DType::BF16, DType::I32}) {
    if (dtype_name(dtype) == name) return dtype;
  }
  fail(ErrorCode::InvalidArgument, "Expected one of f32, f64, f16, bf16, i32 for dtype but received ", quoted(name));
}

}  // namespace molae
