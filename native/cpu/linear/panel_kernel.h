#pragma once

#include <cstddef>
#include <cstdint>

namespace molae::cpu {

// One panel of inputs against rows of a weight, for a piece of the inner size:
//   sums[j][lane] (+)= sum over k of inputs[k][lane] * weights[j * weight_stride + k]
// A lane is a row of the product. Weights are read in their own order, one at a time for all lanes: they are widened to
// f32, and never reordered.
struct PanelProduct {
  const float* inputs;  // [inner][width]
  const float* weights;
  int64_t weight_stride;
  int64_t cols;
  int64_t inner;
  float* sums;  // [cols][width]
  bool first;   // sums are overwritten, not added to
  // What to bring into the caches meanwhile, or null: `next_bytes` of as many rows as there are columns,
  // `next_stride` bytes from row to row.
  const std::byte* next;
  int64_t next_bytes;
  int64_t next_stride;
};

// The kernels of one instruction set, for panels of one, two and three vectors of `lanes` rows. Narrow ones are limited
// by the loads of weights.
struct PanelKernel {
  static constexpr int64_t kMostVectors = 3;
  struct Width {
    int64_t cols;  // computed together
    void (*multiply)(const PanelProduct&);
  };

  int64_t lanes;
  int64_t unit;                // a multiple of all cols: as many columns leave no rest
  int64_t few;                 // rows that take less time one by one than as lanes of a vector
  Width widths[kMostVectors];  // by vectors - 1

  const Width& of(int64_t width) const { return widths[width / lanes - 1]; }
};

// The best for this processor.
const PanelKernel& panel_kernel();

}  // namespace molae::cpu
