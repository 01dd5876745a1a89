#pragma once

#include <cstdint>

#include "core/tensor/tensor.h"
#include "cpu/linear/rows.h"

namespace molae::cpu {

// out[i][j] = x.row(i) . weight[col + j], rows <= kStreamRows. weight [out, inner]: q8 or q4, read as it is stored and
// multiplied in f32. Scratch: stream_scratch.
void stream_blocks(const Rows<float>& x, int64_t rows, const Tensor& weight, int64_t col, int64_t cols, float* out,
                   int64_t out_stride, float* scratch);

}  // namespace molae::cpu
