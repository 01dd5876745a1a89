#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace molae {

enum class DType : uint8_t { F32, F64, F16, BF16, I32 };

size_t item_size(DType dtype);
std::string_view dtype_name(DType dtype);  // "f32", "f64", "f16", "bf16", "i32"
DType parse_dtype(std::string_view name);  // throws InvalidArgument

inline bool is_half(DType dtype) { return dtype == DType::F16 || dtype == DType::BF16; }
inline bool is_float(DType dtype) { return dtype != DType::I32; }

}  // namespace molae
