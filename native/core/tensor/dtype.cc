#include "core/tensor/dtype.h"

#include "core/checked.h"
#include "core/error.h"
#include "core/tensor/blocks.h"

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
    case DType::Q8:
    case DType::Q4:
      break;
  }
  fail(ErrorCode::Internal, "An element of dtype ", dtype_name(dtype), " has no size");
}

size_t row_bytes(DType dtype, size_t cols) {
  if (!is_block(dtype)) return checked_mul(cols, item_size(dtype));
  const size_t blocks = cols / kBlock + (cols % kBlock != 0);
  return checked_mul(blocks, dtype == DType::Q8 ? sizeof(Q8Block) : sizeof(Q4Block));
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
    case DType::Q8:
      return "q8";
    case DType::Q4:
      return "q4";
  }
  return "?";
}

DType parse_dtype(std::string_view name) {
  for (DType dtype : {DType::F32, DType::F64, DType::F16, DType::BF16, DType::I32, DType::Q8, DType::Q4}) {
    if (dtype_name(dtype) == name) return dtype;
  }
  fail(ErrorCode::InvalidArgument, "Expected one of f32, f64, f16, bf16, i32, q8, q4 for dtype but received ",
       quoted(name));
}

}  // namespace molae
