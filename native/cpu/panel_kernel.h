#pragma once

#include <cstddef>
#include <cstdint>

namespace molae::cpu {

// One panel of inputs against rows of a weight, for a piece of the inner size:
//   sums[j][lane] (+)= sum over k of inputs[k][lane] * weights[j * weight_stride + k]
// A lane is a row of the product. Weights are read in their own order, one at a time for all lanes: f32 weights need no
// packing at all, neither a second copy in memory nor one in the cache.
struct PanelProduct {
  const float* inputs;  // [inner][width]
  const float* weights;
  int64_t weight_stride;
  int64_t cols;
  int64_t inner;
  float* sums;  // [cols][width]
  bool first;   // sums are overwritten, not added to
  // What to bring into the second cache meanwhile, or null: `next_bytes` of as many rows as columns are computed
  // together, `next_stride` bytes from row to row.
  const std::byte* next;
  int64_t next_bytes;
  int64_t next_stride;
};

// The kernels of one instruction set. A panel has `lanes` rows or, the faster way, twice as many.
struct PanelKernel {
  int64_t lanes;
  int64_t wide_cols;  // columns that a wide panel computes together
  void (*narrow)(const PanelProduct&);
  void (*wide)(const PanelProduct&);

  int64_t wide_lanes() const { return 2 * lanes; }
};

// The best for this processor.
const PanelKernel& panel_kernel();

}  // namespace molae::cpu
