#pragma once

#include <cstdint>

#include "core/checked.h"
#include "core/tensor/tensor.h"
#include "cpu/linear/rows.h"

namespace molae::cpu {

// Up to this many rows weights are best streamed once, in their own dtype and order. Beyond it panels are faster. By
// measurement, with weights from memory on a Xeon: 24 to 28 rows with the registers of AVX-512, 13 with those of AVX2,
// which is what one pass takes.
int64_t most_streamed_rows();
constexpr int64_t kStreamRows = 24;  // of any instruction set

// Scratch elements of one call with inputs of `inner` elements: whole blocks of them, and one more for each block.
// Whole lines, so that what follows in a thread's scratch is aligned, too.
constexpr int64_t stream_scratch(int64_t inner) {
  const int64_t elements = kStreamRows * ceil_divide(inner, kBlock) * (kBlock + 1);
  return round_up(elements, 16);
}

// How a single row of inputs reads weights: column after column, each in one run that nobody asks for, or several
// columns at a time, which are asked for. More rows take the latter.
enum class Reading { Runs, Columns };

// As memory gives them fastest: in runs where the processor reads ahead by itself. One token of a layer of bf16 takes 5
// to 15% less time so on a Zen 4. On a Xeon with AVX-512 eight columns at a time had 88% of what it reads at best,
// against 80%; f32 with narrower vectors is read in runs everywhere.
Reading one_row_reading(DType dtype);

// out[i][j] = x.row(i) . weight[col + j], rows <= kStreamRows; weight [out, inner] of any dtype but f64.
void stream_rows(const Rows<float>& x, int64_t rows, const Tensor& weight, int64_t col, int64_t cols, float* out,
                 int64_t out_stride, float* scratch, Reading one_row);

inline void stream_rows(const Rows<float>& x, int64_t rows, const Tensor& weight, int64_t col, int64_t cols, float* out,
                        int64_t out_stride, float* scratch) {
  stream_rows(x, rows, weight, col, cols, out, out_stride, scratch, one_row_reading(weight.dtype()));
}

// Some columns of f32 weights, for a piece of the inner size.
struct WideBlock {
  const float* data;
  int64_t stride;  // elements from column to column
  int64_t cols;
  int64_t inner;
};

// sums[i][j] (+)= x.row(i) . column j, rows <= kStreamRows; the first block's are overwritten. Scratch: rows * inner.
void stream_block(const Rows<float>& x, int64_t rows, const WideBlock& block, bool first, float* sums,
                  int64_t sums_stride, float* scratch);

}  // namespace molae::cpu
