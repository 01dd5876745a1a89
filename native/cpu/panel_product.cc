#include "cpu/panel_product.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "cpu/convert.h"
#include "cpu/multiversion.h"
#include "cpu/panel_kernel.h"
#include "cpu/vectors.h"

namespace molae::cpu {
namespace {

// The inner size is cut so that a panel of inputs stays in the first cache while all weights of the block pass, and all
// inputs of a block and its weights in the second.
constexpr int64_t kMostInner = 256;

// Blocks of weights are copied, and narrow ones widened, a few rows at a time just before the first panel needs them:
// memory is read in the weights' own size, and the odd stride keeps rows out of each other's cache sets, where the
// power of two between them in a layer puts them.
constexpr int64_t kBlockStride = kMostInner + 16;

constexpr int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// Rows as columns, `width` lanes; missing rows are 0.
MOLAE_MULTIVERSION void pack_panel(const Rows<float>& x, int64_t row, int64_t rows, int64_t begin, int64_t inner,
                                   int64_t width, float* to) {
  for (int64_t lane = 0; lane < width; lane += 8) {
    const float* from[8];
    for (int64_t i = 0; i < 8; ++i) from[i] = x.row(row + std::min(lane + i, rows - 1)) + begin;
    const int64_t present = std::clamp<int64_t>(rows - lane, 0, 8);
    int64_t k = 0;
    for (; k + 8 <= inner; k += 8) {
      Floats8 block[8];
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) load(block[i], from[i] + k);
      for (int64_t i = present; i < 8; ++i) block[i] = Floats8{};
      transpose(block);
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) store(to + (k + i) * width + lane, block[i]);
    }
    for (; k < inner; ++k) {
      for (int64_t i = 0; i < 8; ++i) to[k * width + lane + i] = i < present ? from[i][k] : 0.0f;
    }
  }
}

// The first `rows` lanes of a panel's sums become rows.
MOLAE_MULTIVERSION void unpack_panel(const float* sums, int64_t width, int64_t rows, int64_t cols, float* out,
                                     int64_t out_stride) {
  int64_t col = 0;
  for (; col + 8 <= cols; col += 8) {
    for (int64_t lane = 0; lane < rows; lane += 8) {
      Floats8 block[8];
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) load(block[i], sums + (col + i) * width + lane);
      transpose(block);
      for (int64_t i = 0; i < std::min<int64_t>(8, rows - lane); ++i)
        store(out + (lane + i) * out_stride + col, block[i]);
    }
  }
  for (; col < cols; ++col) {
    for (int64_t lane = 0; lane < rows; ++lane) out[lane * out_stride + col] = sums[col * width + lane];
  }
}

// Calls body(first row, rows, width) for every panel: two vectors wide, and what is left in one of one to three.
template <class Body>
void for_panels(int64_t rows, Body body) {
  const int64_t lanes = panel_kernel().lanes;
  for (int64_t row = 0; row < rows;) {
    const int64_t left = rows - row;
    const int64_t width = left <= PanelKernel::kMostVectors * lanes ? round_up(left, lanes) : 2 * lanes;
    body(row, std::min(left, width), width);
    row += width;
  }
}

// Rows col .. col + cols of a weight, block by block.
class WeightBlocks {
 public:
  WeightBlocks(const Tensor& weight, int64_t col, int64_t cols, float* copy)
      : dtype_(weight.dtype()),
        stride_(row_bytes(dtype_, weight.cols())),
        first_(weight.as<const std::byte>() + col * stride_),
        cols_(cols),
        copy_(copy) {}

  // inputs: panels of the same part of the rows.
  void multiply(int64_t begin, int64_t inner, int64_t rows, const float* inputs, float* sums) {
    PanelProduct product{};
    product.inner = inner;
    product.first = begin == 0;
    for_panels(rows, [&](int64_t row, int64_t, int64_t width) {
      product.inputs = inputs + row * inner;
      product.sums = sums + row * cols_;
      if (row == 0) return multiply_first(product, begin, width, rows > width);
      product.cols = cols_;
      product.weights = copy_;
      product.weight_stride = kBlockStride;
      panel_kernel().of(width).multiply(product);
    });
  }

 private:
  // The first panel takes the weights from memory, a few rows at a time, fetches the rows that come next, and leaves a
  // copy for the panels that follow.
  void multiply_first(PanelProduct product, int64_t begin, int64_t width, bool more) {
    const PanelKernel::Width& kernel = panel_kernel().of(width);
    const std::byte* block = first_ + row_bytes(dtype_, begin);
    float* sums = product.sums;
    product.next_bytes = row_bytes(dtype_, product.inner);
    product.next_stride = stride_;
    product.copy_stride = kBlockStride;
    for (int64_t col = 0; col < cols_; col += kernel.cols) {
      const std::byte* rows = block + col * stride_;
      float* copy = copy_ + col * kBlockStride;
      product.cols = std::min(kernel.cols, cols_ - col);
      if (dtype_ == DType::F32) {
        product.weights = reinterpret_cast<const float*>(rows);
        product.weight_stride = stride_ / static_cast<int64_t>(sizeof(float));
        product.copy = more ? copy : nullptr;
      } else {
        for (int64_t j = 0; j < product.cols; ++j) {
          widen_elements(dtype_, rows + j * stride_, copy + j * kBlockStride, product.inner);
        }
        product.weights = copy;
        product.weight_stride = kBlockStride;
      }
      const int64_t next = col + product.cols;
      product.next = next < cols_ ? block + next * stride_ : block + product.next_bytes;
      product.sums = sums + col * width;
      kernel.multiply(product);
    }
  }

  DType dtype_;
  int64_t stride_;
  const std::byte* first_;
  int64_t cols_;
  float* copy_;
};

}  // namespace

int64_t panel_elements(int64_t rows, int64_t cols) { return round_up(rows, panel_kernel().lanes) * cols; }

int64_t panel_scratch() { return kPanelRows * kMostInner + kPanelCols * kBlockStride; }

void multiply_panels(const Rows<float>& x, int64_t rows, std::span<const PanelTarget> targets, int64_t col,
                     int64_t cols, float* scratch) {
  float* inputs = scratch;
  float* copy = scratch + kPanelRows * kMostInner;
  const int64_t size = targets[0].weight.cols();
  const int64_t blocks = (size + kMostInner - 1) / kMostInner;
  const int64_t block = round_up((size + blocks - 1) / blocks, kBlock);
  for (int64_t begin = 0; begin < size; begin += block) {
    const int64_t inner = std::min(block, size - begin);
    for_panels(rows, [&](int64_t row, int64_t count, int64_t width) {
      pack_panel(x, row, count, begin, inner, width, inputs + row * inner);
    });
    for (const PanelTarget& target : targets) {
      WeightBlocks(target.weight, col, cols, copy).multiply(begin, inner, rows, inputs, target.sums);
    }
  }
}

void store_panels(const float* sums, int64_t rows, int64_t cols, float* out, int64_t out_stride) {
  for_panels(rows, [&](int64_t row, int64_t count, int64_t width) {
    unpack_panel(sums + row * cols, width, count, cols, out + row * out_stride, out_stride);
  });
}

}  // namespace molae::cpu
