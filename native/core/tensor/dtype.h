#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace molae {

// Q8 and Q4 are weights in blocks along the rows (core/tensor/blocks.h).
enum class DType : uint8_t { F32, F64, F16, BF16, I32, Q8, Q4 };

// Elements of a row that a block has.
inline constexpr int64_t kBlock = 32;

constexpr bool is_half(DType dtype) { return dtype == DType::F16 || dtype == DType::BF16; }
inline bool is_block(DType dtype) { return dtype == DType::Q8 || dtype == DType::Q4; }
inline bool is_float(DType dtype) { return dtype != DType::I32 && !is_block(dtype); }

size_t item_size(DType dtype);               // of an element; blocks have none
size_t row_bytes(DType dtype, size_t cols);  // of a row of `cols` elements; blocks end with the row
std::string_view dtype_name(DType dtype);    // "f32", "f64", "f16", "bf16", "i32", "q8", "q4"
DType parse_dtype(std::string_view name);    // throws InvalidArgument

}  // namespace molae
