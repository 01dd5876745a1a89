#pragma once

#include <cstdint>

#include "core/tensor.h"
#include "cpu/rows.h"

namespace molae::cpu {

// Up to this many rows weights are best streamed once, in their own dtype and order: to read them takes about as long
// as to multiply them. Beyond it panels are faster.
constexpr int64_t kStreamRows = 12;

// Scratch elements of one call with inputs of `inner` elements: whole blocks of them, and one more for each block.
constexpr int64_t stream_scratch(int64_t inner) { return kStreamRows * ((inner + kBlock - 1) / kBlock) * (kBlock + 1); }

// out[i][j] = x.row(i) . weight[col + j], rows <= kStreamRows. weight [out, inner] of any dtype but f64.
void stream_rows(const Rows<float>& x, int64_t rows, const Tensor& weight, int64_t col, int64_t cols, float* out,
                 int64_t out_stride, float* scratch);

}  // namespace molae::cpu
