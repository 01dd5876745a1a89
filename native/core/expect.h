#pragma once

#include <cstdint>
#include <string_view>

#include "core/tensor/tensor.h"

// What an argument must be. Every error has the form "Expected … for <name> but received …".
namespace molae {

class Backend;

// In a shape that is expected: any size.
inline constexpr int64_t kAny = -1;

// Throws Disposed where there is no tensor, DeviceMismatch for one of another backend.
void expect_owner(const Tensor& tensor, std::string_view name, const Backend* owner);

// Throws ShapeMismatch.
void expect_shape(const Tensor& tensor, std::string_view name, const Shape& wanted);

// Both throw DTypeMismatch; floats are f32, f64, f16 and bf16.
void expect_dtype(const Tensor& tensor, std::string_view name, DType wanted);
void expect_floats(const Tensor& tensor, std::string_view name);

// A tensor of this backend, shape and dtype; throws what the three above throw.
void expect_tensor(const Tensor& tensor, std::string_view name, DType dtype, const Shape& shape, const Backend* owner);

// Throws InvalidArgument outside of least to most.
void expect_integer(int64_t value, std::string_view name, int64_t least, int64_t most);

}  // namespace molae
