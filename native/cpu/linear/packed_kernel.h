#pragma once

#include <cstddef>
#include <cstdint>

#include "core/tensor/dtype.h"
#include "cpu/linear/packed_weight.h"

namespace molae::cpu {

// Some rows against a group of columns of a packed weight, for a piece of the inner size:
//   sums[i][j] (+)= sum over k of x[i][k] * weights[k][j]
struct PackedProduct {
  const std::byte* weights;  // from the first step of the piece on
  int64_t blocks;            // of the group: 3 at most
  const float* const* x;     // where the piece begins, row by row; or pairs of bf16, where kernels take them
  int64_t rows;
  int64_t inner;  // odd only where the weight's ends
  float* sums;    // [rows][.., sums_stride], blocks * kPackedCols of each
  int64_t sums_stride;
  bool first;   // sums are overwritten, not added to
  float* kept;  // where kernels that keep them store the weights as floats: [inner][blocks * kPackedCols]
  // What to bring into the caches meanwhile, at an even rate. With few rows it is what lies some way ahead, in this
  // piece and then in the next.
  const std::byte* next;
  int64_t next_bytes;
  int64_t next_inner;  // and so many inputs of each row, after those of the piece
  bool alone;          // no other pass over the weights brings in parts of it
  bool reads_ahead;    // the processor does: few rows need not ask for what comes next
};

// The kernels of one instruction set.
struct PackedKernel {
  static constexpr int64_t kMostRows = 8;  // of any instruction set

  static constexpr int64_t kMostKept = 128;  // steps of a product whose weights are kept

  using Multiply = void (*)(const PackedProduct&);

  int64_t most_rows;  // of a product
  int64_t best_rows;  // of each of many products: reads the least for as many sums
  int64_t few_rows;   // up to so many, one pass reads the weights of all columns: pieces need not stay in a cache
  Multiply f32;
  // Weights that have to be widened, which `keep` also stores: for half of the most rows at least.
  struct Halves {
    Multiply use, keep;
  };
  Halves bf16, f16;
};

// The best for this processor.
const PackedKernel& packed_kernel();

// Of bf16 weights and pairs of bf16 inputs, as many rows as kernels with AVX-512 take: two steps an instruction, where
// the processor has one that is as fast as a multiply-add; else null.
PackedKernel::Multiply pair_kernel();

}  // namespace molae::cpu
