#pragma once

#include <cstddef>
#include <cstdint>

#include "core/tensor/dtype.h"

namespace molae {

// Vectorized conversions between floating dtypes, and from the blocks of one row: the same bits as core/tensor/half.h
// gives.
void convert_elements(DType from_dtype, const void* from, DType to_dtype, void* to, size_t count);

// Any floating dtype, or the blocks of one row from the start of a block on, to float or double.
template <class Real>
void widen_elements(DType from_dtype, const void* from, Real* to, size_t count);

// Index of the first NaN or infinity, -1 if there is none.
int64_t first_non_finite(DType dtype, const void* data, size_t count);

}  // namespace molae
