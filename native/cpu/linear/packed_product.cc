#include "cpu/linear/packed_product.h"

#include <algorithm>

#include "core/checked.h"
#include "core/tensor/half.h"
#include "cpu/linear/packed_kernel.h"
#include "cpu/linear/panel_product.h"
#include "cpu/simd/convert.h"
#include "cpu/simd/multiversion.h"
#include "cpu/system/processor.h"

namespace molae::cpu {
namespace {

constexpr int64_t kLineBytes = 64;

// Floats of widened weights.
constexpr int64_t kKept = PackedKernel::kMostKept * kGroupCols;

// With more rows a group's weights are computed with for longer than the next ones take to come.
constexpr int64_t kPackedWaitRows = 12;

// From so many rows on a piece has so many passes that what each takes to begin counts less than what it reads. With
// AVX2 four rows by three vectors, where twelve rows and more had six by two, are 2 to 4% faster on a Zen 4 (f32;
// halves up to 1.5%), but with fewer rows a pass more over the weights costs as much.
constexpr int64_t kManyRows = 12;

// The kernel of pairs is through with as many steps in half of the time, and their weights take half of the room of
// floats. On a Zen 4 it is 6 to 8% faster with 64 and 128 rows than with pieces as short as those of others.
constexpr int64_t kMostInPairs = 2 * PackedKernel::kMostKept;

int64_t longest_piece(bool in_pairs) { return in_pairs ? kMostInPairs : PackedKernel::kMostKept; }

// Pieces of the inner size, in steps. With few rows such that their inputs take half of the first cache; where memory
// is waited for, such that the weights of a group do, as they are stored; else the longest, as a piece has the sums
// loaded and stored, and what the first cache does not hold comes from the second in time.
int64_t most_steps(int64_t rows, DType dtype, int64_t longest) {
  constexpr int64_t kUnit = 32;
  const int64_t half = caches().first_bytes / 2;
  if (rows <= packed_kernel().few_rows) return half / (rows * static_cast<int64_t>(sizeof(float))) / 2 * 2;
  if (rows > kPackedWaitRows) return longest;
  const int64_t steps = half / (kGroupCols * static_cast<int64_t>(item_size(dtype)));
  return std::clamp(steps / kUnit * kUnit, kUnit, PackedKernel::kMostKept);
}

// Parts of the inner size of which the rows of a tile take half of the second cache.
int64_t most_inner(int64_t rows, DType dtype, int64_t longest) {
  const int64_t steps = most_steps(rows, dtype, longest);
  const int64_t most = caches().second_bytes / 2 / (rows * static_cast<int64_t>(sizeof(float)));
  return std::max(steps, most / steps * steps);
}

MOLAE_MULTIVERSION void round_to_bf16(const float* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = bf16_to_f32(f32_to_bf16(from[i]));
}

// A piece of a group of columns.
struct Piece {
  const PackedTarget* target;
  const std::byte* weights;
  int64_t width;         // columns, in whole blocks
  int64_t col;           // the group's first, from the first column of the product
  int64_t begin, inner;  // steps
  int64_t part_begin;    // of the part of the inner size that it belongs to
  int64_t bytes;
};

// The pieces of products in the order of the work: target after target, in each part after part of the inner size, in
// each group after group.
class Pieces {
 public:
  Pieces(std::span<const PackedTarget> targets, int64_t rows, int64_t col, int64_t cols)
      : targets_(targets), rows_(rows), col_(col), cols_(cols) {
    cut_target();
  }

  // False where there is none left.
  bool next(Piece& piece) {
    if (target_ == targets_.size()) return false;
    const PackedWeight& weight = targets_[target_].weight;
    const int64_t end = std::min(weight.cols(), part_begin_ + part_);
    const int64_t inner = std::min(wanted_steps(), end - begin_);
    const int64_t width = weight.group_cols(col_ + group_);
    piece = {&targets_[target_],
             weight.group(col_ + group_, begin_),
             width,
             group_,
             begin_,
             inner,
             part_begin_,
             inner * width * static_cast<int64_t>(item_size(weight.dtype()))};
    first_ = false;
    begin_ += inner;
    if (begin_ == end) end_group(end);
    return true;
  }

 private:
  // The very first piece is short, as nobody asked for it before: where reading takes longer than computing all wait
  // for memory. Not with so few rows that their kernels look ahead within a piece.
  int64_t wanted_steps() const {
    constexpr int64_t kFirstSteps = 16;
    const bool waits = rows_ <= kPackedStreamRows && rows_ > packed_kernel().few_rows;
    return first_ && waits ? kFirstSteps : steps_;
  }

  void cut_target() {
    const PackedWeight& weight = targets_[target_].weight;
    const int64_t inner = weight.cols();
    const int64_t longest = longest_piece(weight.rounds_inputs() && pair_kernel() != nullptr);
    const int64_t parts = ceil_divide(inner, most_inner(rows_, weight.dtype(), longest));
    part_ = round_up(ceil_divide(inner, parts), 2);
    const int64_t pieces = ceil_divide(part_, most_steps(rows_, weight.dtype(), longest));
    steps_ = round_up(ceil_divide(part_, pieces), 2);
  }

  void end_group(int64_t end) {
    group_ += kGroupCols;
    begin_ = part_begin_;
    if (group_ < cols_) return;
    group_ = 0;
    begin_ = part_begin_ = end;
    if (end < targets_[target_].weight.cols()) return;
    begin_ = part_begin_ = 0;
    if (++target_ < targets_.size()) cut_target();
  }

  std::span<const PackedTarget> targets_;
  int64_t rows_, col_, cols_;
  size_t target_ = 0;
  int64_t part_ = 0;   // steps
  int64_t steps_ = 0;  // of a piece
  bool first_ = true;
  int64_t part_begin_ = 0;
  int64_t group_ = 0;  // its first column
  int64_t begin_ = 0;
};

// The inputs of a part of the inner size, rounded to bf16: in pairs where a kernel takes them, else as floats again.
// They are rounded with the first group of columns that they are multiplied with, and read by all.
class RoundedInputs {
 public:
  explicit RoundedInputs(float* room) : room_(room) {}

  static int64_t room(int64_t rows) { return rows * packed_stride(most_rounded(rows)); }

  void round(const Piece& piece, int64_t rows) {
    if (piece.col == 0 && piece.begin == piece.part_begin) {
      stride_ = packed_stride(std::min(piece.target->weight.cols() - piece.begin, most_rounded(rows)));
    }
    if (piece.col != 0) return;
    for (int64_t i = 0; i < rows; ++i) {
      const float* from = piece.target->x.row(i) + piece.begin;
      if (!in_pairs_) {
        round_to_bf16(from, to(piece, i), piece.inner);
        continue;
      }
      auto* pairs = reinterpret_cast<uint16_t*>(to(piece, i));
      convert_elements(DType::F32, from, DType::BF16, pairs, piece.inner);
      if (piece.inner % 2 != 0) pairs[piece.inner] = 0;
    }
  }

  const float* row(const Piece& piece, int64_t row) const { return to(piece, row); }

 private:
  static int64_t most_rounded(int64_t rows) {
    return most_inner(rows, DType::BF16, longest_piece(pair_kernel() != nullptr));
  }

  float* to(const Piece& piece, int64_t row) const {
    const int64_t begin = piece.begin - piece.part_begin;
    return room_ + row * stride_ + (in_pairs_ ? begin / 2 : begin);
  }

  const bool in_pairs_ = pair_kernel() != nullptr;
  float* room_;
  int64_t stride_ = 0;
};

// The first group of a part of the inner size finds most of its inputs in memory or in a cache that threads share.
bool brings_in_inputs(const Piece& piece, const Piece& next) {
  return piece.col == 0 && next.target == piece.target && next.begin == piece.begin + piece.inner;
}

// All rows against a piece, in passes of about the same number. Each brings in its share of what is read next: so
// memory is asked for at an even rate, which is what lets reading and computing overlap. The first of several passes
// leaves halves in `widened` as floats.
void multiply_piece(const Piece& piece, int64_t rows, const Piece* next, const RoundedInputs& rounded, float* widened) {
  const PackedKernel& kernel = packed_kernel();
  const DType dtype = piece.target->weight.dtype();
  const int64_t passes = ceil_divide(rows, rows < kManyRows ? kernel.most_rows : kernel.best_rows);
  const int64_t fewer = rows / passes;  // of the first passes; the others have one more
  const int64_t first_larger = passes - rows % passes;
  const int64_t share = next ? round_up(ceil_divide(next->bytes, passes), kLineBytes) : 0;
  const float* inputs[PackedKernel::kMostRows];
  PackedProduct product{};
  product.weights = piece.weights;
  product.blocks = piece.width / kPackedCols;
  product.x = inputs;
  product.inner = piece.inner;
  product.first = piece.begin == 0;
  product.kept = widened;
  product.sums_stride = piece.target->sums_stride;
  product.alone = passes == 1;
  product.reads_ahead = reads_ahead();
  const bool rounds = piece.target->weight.rounds_inputs();
  const PackedKernel::Multiply multiply_pairs = rounds ? pair_kernel() : nullptr;
  product.next_inner = next && !rounds && brings_in_inputs(piece, *next) ? next->inner : 0;
  for (int64_t pass = 0, row = 0; pass < passes; ++pass, row += product.rows) {
    product.rows = fewer + (pass >= first_larger ? 1 : 0);
    for (int64_t i = 0; i < product.rows; ++i) {
      inputs[i] = rounds ? rounded.row(piece, row + i) : piece.target->x.row(row + i) + piece.begin;
    }
    product.sums = piece.target->sums + row * piece.target->sums_stride + piece.col;
    if (next) {
      const int64_t asked = std::min(next->bytes, pass * share);
      product.next = next->weights + asked;
      product.next_bytes = std::min(share, next->bytes - asked);
    }
    if (!is_half(dtype)) {
      kernel.f32(product);
      continue;
    }
    if (multiply_pairs) {
      multiply_pairs(product);
      continue;
    }
    const PackedKernel::Halves& halves = dtype == DType::BF16 ? kernel.bf16 : kernel.f16;
    if (passes == 1) {
      halves.use(product);
    } else if (pass == 0) {
      halves.keep(product);
      product.weights = reinterpret_cast<const std::byte*>(widened);
    } else {
      kernel.f32(product);
    }
  }
}

}  // namespace

int64_t packed_scratch() {
  static const int64_t kElements = [] {
    int64_t room = 0;
    for (int64_t rows = 1; rows <= kPanelRows; ++rows) {
      room = std::max(room, RoundedInputs::room(rows));
    }
    return kKept + room;
  }();
  return kElements;
}

void multiply_packed(std::span<const PackedTarget> targets, int64_t rows, int64_t col, int64_t cols, float* scratch) {
  Pieces pieces(targets, rows, col, cols);
  RoundedInputs rounded(scratch + kKept);
  Piece piece, next;
  for (bool more = pieces.next(piece); more; piece = next) {
    more = pieces.next(next);
    if (piece.target->weight.rounds_inputs()) rounded.round(piece, rows);
    multiply_piece(piece, rows, more ? &next : nullptr, rounded, scratch);
  }
}

}  // namespace molae::cpu
