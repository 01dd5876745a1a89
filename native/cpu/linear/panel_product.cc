#include "cpu/linear/panel_product.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#include <algorithm>
#include <cstring>
#include <numeric>

#include "core/checked.h"
#include "cpu/linear/panel_kernel.h"
#include "cpu/linear/stream_kernel.h"
#include "cpu/simd/convert.h"
#include "cpu/simd/multiversion.h"
#include "cpu/simd/vectors.h"
#include "cpu/system/processor.h"

namespace molae::cpu {
namespace {

constexpr int64_t kBlockCols = 96;  // a multiple of the columns that any kernel computes together

// The inner size is cut so that all inputs of a block stay in the second cache, with its weights and those of the block
// that comes next: 1.8 KB for each of it. Longer pieces load and store sums less often, 3% of the time in f32.
int64_t most_inner() { return caches().second_bytes >= 2 << 20 ? 512 : 256; }

// Blocks of weights are copied, and narrow ones widened, a few rows at a time just before the first panel needs them:
// memory is read in the weights' own size, and the odd stride keeps rows out of each other's cache sets, where the
// power of two between them in a layer puts them.
int64_t block_stride() { return most_inner() + 16; }

constexpr int64_t kLineBytes = 64;

// Rows as columns, `width` lanes; those without a row have the last one's values. Sixteen elements of sixteen rows at a
// time: whole cache lines are read and written.
MOLAE_MULTIVERSION void pack_panel(const Rows<float>& x, int64_t row, int64_t rows, int64_t begin, int64_t inner,
                                   int64_t width, float* to) {
  for (int64_t lane = 0; lane < width; lane += 16) {
    const int64_t lanes = std::min<int64_t>(16, width - lane);
    const float* from[16];
    for (int64_t i = 0; i < lanes; ++i) from[i] = x.row(row + std::min(lane + i, rows - 1)) + begin;
    int64_t k = 0;
    for (; k + 16 <= inner; k += 16) {
      for (int64_t first = 0; first < lanes; first += 8) {
        for (int64_t quad = k; quad < k + 16; quad += 4) {
          Floats8 block[4];
#pragma GCC unroll 4
          for (int i = 0; i < 4; ++i) load_halves(block[i], from[first + i] + quad, from[first + 4 + i] + quad);
          transpose_halves(block);
#pragma GCC unroll 4
          for (int i = 0; i < 4; ++i) store(to + (quad + i) * width + lane + first, block[i]);
        }
      }
    }
    for (; k < inner; ++k) {
      for (int64_t i = 0; i < lanes; ++i) to[k * width + lane + i] = from[i][k];
    }
  }
}

// Sixteen columns of eight lanes of sums become rows: whole cache lines are written.
MOLAE_INLINE void unpack_block(const float* sums, int64_t width, float* out, int64_t out_stride) {
  for (int64_t col = 0; col < 16; col += 4) {
    Floats8 block[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) load(block[i], sums + (col + i) * width);
    transpose_halves(block);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) store_halves(out + i * out_stride + col, out + (i + 4) * out_stride + col, block[i]);
  }
}

// The first `rows` lanes of a panel's sums become rows.
MOLAE_MULTIVERSION void unpack_panel(const float* sums, int64_t width, int64_t rows, int64_t cols, float* out,
                                     int64_t out_stride) {
  const int64_t whole = rows / 8 * 8;
  int64_t col = 0;
  for (; col + 16 <= cols; col += 16) {
    for (int64_t lane = 0; lane < whole; lane += 8) {
      unpack_block(sums + col * width + lane, width, out + lane * out_stride + col, out_stride);
    }
    if (whole == rows) continue;
    float last[8 * 16];
    unpack_block(sums + col * width + whole, width, last, 16);
    for (int64_t i = 0; i < rows - whole; ++i) {
      std::memcpy(out + (whole + i) * out_stride + col, last + i * 16, 16 * sizeof(float));
    }
  }
  for (; col < cols; ++col) {
    for (int64_t lane = 0; lane < rows; ++lane) out[lane * out_stride + col] = sums[col * width + lane];
  }
}

// Some columns of a weight, for a piece of the inner size.
struct WeightBlock {
  DType dtype;
  const std::byte* data;  // of the first column
  int64_t stride;         // bytes from column to column
  int64_t cols;
  int64_t inner;

  int64_t bytes() const { return static_cast<int64_t>(row_bytes(dtype, inner)); }  // of a column
};

#if defined(__SANITIZE_ADDRESS__)
// The kernel may be without AddressSanitizer (CMakeLists.txt): all that it will read and write is checked before.
void check_reach(const PanelProduct& product, int64_t width) {
  const auto check = [](const float* data, int64_t count) {
    const void* bad = __asan_region_is_poisoned(const_cast<float*>(data), count * sizeof(float));
    if (bad) *static_cast<const volatile char*>(bad);  // an access that the sanitizer reports
  };
  check(product.inputs, product.inner * width);
  for (int64_t j = 0; j < product.cols; ++j) check(product.weights + j * product.weight_stride, product.inner);
  check(product.sums, product.cols * width);
}
#else
void check_reach(const PanelProduct&, int64_t) {}
#endif

void multiply(const PanelProduct& product, int64_t width) {
  check_reach(product, width);
  panel_kernel().of(width).multiply(product);
}

// How many of a kernel's columns may have their weights in one set of the first cache, beside those of the inputs.
int64_t columns_in_a_set() {
  const int64_t ways = caches().first_ways;
  return ways > 0 ? ways - 4 : 4;
}

// F32 weights are read where they are, which saves copying them. Not where the power of two between the rows of a layer
// puts more of them into a set of the first cache than it holds: copies have an odd stride.
bool reads_in_place(const WeightBlock& block, int64_t rows) {
  constexpr int64_t kWayBytes = 4096;  // of the first cache of every processor that has one
  if (block.dtype != DType::F32) return false;
  int64_t together = 0;
  for_panels(rows_in_vectors(rows),
             [&](int64_t, int64_t, int64_t width) { together = std::max(together, panel_kernel().of(width).cols); });
  return together * std::gcd(block.stride, kWayBytes) <= columns_in_a_set() * kWayBytes;
}

// The first panel has the weights copied, a few columns at a time, for itself and for the panels that follow, and
// brings in the columns that come next.
void copy_and_multiply(const WeightBlock& block, PanelProduct product, int64_t width, float* copy) {
  const PanelKernel::Width& kernel = panel_kernel().of(width);
  float* sums = product.sums;
  product.next_bytes = block.bytes();
  product.next_stride = block.stride;
  for (int64_t col = 0; col < block.cols; col += kernel.cols) {
    product.cols = std::min(kernel.cols, block.cols - col);
    for (int64_t j = col; j < col + product.cols; ++j) {
      widen_elements(block.dtype, block.data + j * block.stride, copy + j * block_stride(), block.inner);
    }
    product.weights = copy + col * block_stride();
    product.next = block.data + std::min(col + kernel.cols, block.cols - 1) * block.stride;
    product.sums = sums + col * width;
    multiply(product, width);
  }
}

// The rows of a tile, packed piece by piece.
class PackedRows {
 public:
  PackedRows(const Rows<float>& x, int64_t rows, float* packed) : x_(x), rows_(rows), packed_(packed) {}

  void take_piece(int64_t begin, int64_t inner) {
    begin_ = begin;
    inner_ = inner;
    for_panels(rows_in_vectors(rows_), [&](int64_t row, int64_t count, int64_t width) {
      pack_panel(x_, row, count, begin, inner, width, packed_ + row * inner);
    });
  }
  const float* panel(int64_t row, int64_t) const { return packed_ + row * inner_; }
  Rows<float> rows_from(int64_t row) const { return x_.from(row, begin_); }

 private:
  const Rows<float>& x_;
  int64_t rows_;
  float* packed_;
  int64_t begin_ = 0;
  int64_t inner_ = 0;
};

// Rows of `size` elements that are in panels already.
class WholePanels {
 public:
  WholePanels(const float* data, int64_t size) : data_(data), size_(size) {}

  void take_piece(int64_t begin, int64_t) { begin_ = begin; }
  const float* panel(int64_t row, int64_t width) const { return data_ + row * size_ + begin_ * width; }
  Rows<float> rows_from(int64_t row) const { return {panel(row, 1), size_}; }

 private:
  const float* data_;
  int64_t size_;
  int64_t begin_ = 0;
};

// What a call has of its own.
struct Scratch {
  float* copy;    // of a block of weights
  float* inputs;  // of a piece of the inner size

  explicit Scratch(float* data) : copy(data), inputs(data + kBlockCols * block_stride()) {}
};

// The panels of a tile, `cols` columns of sums each, times a block of columns from `col` on. While they compute they
// bring in the weights of the next block, each its share of every column, but for the first where it copies.
template <class Inputs>
void multiply_block(const WeightBlock& block, const WeightBlock* next, bool first, int64_t rows, int64_t cols,
                    int64_t col, const Inputs& inputs, float* sums, const Scratch& scratch) {
  const int64_t in_vectors = rows_in_vectors(rows);
  int64_t panels = 0;
  for_panels(in_vectors, [&](int64_t, int64_t, int64_t) { ++panels; });
  const bool in_place = reads_in_place(block, rows);
  const int64_t asking = in_place ? panels : panels - 1;
  const int64_t share = next && asking > 0 ? round_up(next->bytes() / asking + 1, kLineBytes) : 0;
  const WideBlock wide = {in_place ? reinterpret_cast<const float*>(block.data) : scratch.copy,
                          in_place ? block.stride / 4 : block_stride(), block.cols, block.inner};
  PanelProduct product{};
  product.weights = wide.data;
  product.weight_stride = wide.stride;
  product.cols = wide.cols;
  product.inner = wide.inner;
  product.first = first;
  int64_t begun = 0;
  for_panels(in_vectors, [&](int64_t row, int64_t, int64_t width) {
    product.inputs = inputs.panel(row, width);
    product.sums = sums + row * cols + col * width;
    if (row == 0 && !in_place) return copy_and_multiply(block, product, width, scratch.copy);
    product.next = nullptr;
    if (next && begun < next->bytes()) {
      product.next = next->data + begun;
      product.next_bytes = std::min(share, next->bytes() - begun);
      product.next_stride = next->stride;
      begun += share;
    }
    multiply(product, width);
  });
  if (in_vectors == rows) return;
  stream_block(inputs.rows_from(in_vectors), rows - in_vectors, wide, first, sums + in_vectors * cols + col, cols,
               scratch.inputs + in_vectors * block.inner);
}

template <class Inputs>
void multiply_blocks(Inputs inputs, int64_t rows, std::span<const PanelTarget> targets, int64_t col, int64_t cols,
                     const Scratch& scratch) {
  const int64_t size = targets[0].weight.cols();
  const int64_t pieces = ceil_divide(size, most_inner());
  const int64_t piece = round_up(ceil_divide(size, pieces), kBlock);
  const int64_t parts = ceil_divide(cols, kBlockCols);
  const int64_t blocks_of_piece = static_cast<int64_t>(targets.size()) * parts;
  const int64_t blocks = ceil_divide(size, piece) * blocks_of_piece;
  // In the order of the work: piece by piece, target by target, part by part of the columns.
  const auto block_at = [&](int64_t index) {
    const Tensor& weight = targets[index % blocks_of_piece / parts].weight;
    const int64_t begin = index / blocks_of_piece * piece;
    const int64_t first = index % parts * kBlockCols;
    const auto stride = static_cast<int64_t>(row_bytes(weight.dtype(), weight.cols()));
    const std::byte* data = weight.as<const std::byte>() + (col + first) * stride + row_bytes(weight.dtype(), begin);
    return WeightBlock{weight.dtype(), data, stride, std::min(kBlockCols, cols - first), std::min(piece, size - begin)};
  };
  for (int64_t index = 0; index < blocks; ++index) {
    const WeightBlock block = block_at(index);
    const int64_t begin = index / blocks_of_piece * piece;
    if (index % blocks_of_piece == 0) inputs.take_piece(begin, block.inner);
    const WeightBlock next = block_at(std::min(index + 1, blocks - 1));
    float* sums = targets[index % blocks_of_piece / parts].sums;
    multiply_block(block, index + 1 < blocks ? &next : nullptr, begin == 0, rows, cols, index % parts * kBlockCols,
                   inputs, sums, scratch);
  }
}

}  // namespace

int64_t panel_unit() { return panel_kernel().unit; }

int64_t panel_elements(int64_t rows, int64_t cols) { return round_up(rows, panel_kernel().lanes) * cols; }

int64_t panel_scratch() { return kPanelRows * most_inner() + kBlockCols * block_stride(); }

void multiply_panels(const Rows<float>& x, int64_t rows, std::span<const PanelTarget> targets, int64_t col,
                     int64_t cols, float* scratch) {
  const Scratch parts(scratch);
  multiply_blocks(PackedRows(x, rows, parts.inputs), rows, targets, col, cols, parts);
}

void multiply_panels(const float* panels, int64_t rows, std::span<const PanelTarget> targets, int64_t col, int64_t cols,
                     float* scratch) {
  multiply_blocks(WholePanels(panels, targets[0].weight.cols()), rows, targets, col, cols, Scratch(scratch));
}

void store_panels(const float* sums, int64_t rows, int64_t cols, float* out, int64_t out_stride) {
  const int64_t in_vectors = rows_in_vectors(rows);
  for_panels(in_vectors, [&](int64_t row, int64_t count, int64_t width) {
    unpack_panel(sums + row * cols, width, count, cols, out + row * out_stride, out_stride);
  });
  for (int64_t row = in_vectors; row < rows; ++row) {
    std::memcpy(out + row * out_stride, sums + row * cols, cols * sizeof(float));
  }
}

}  // namespace molae::cpu
