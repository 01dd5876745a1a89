#include "cpu/linear/stream_kernel.h"

#include <algorithm>
#include <utility>

#include "core/error.h"
#include "cpu/linear/stream_blocks.h"
#include "cpu/linear/stream_inputs.h"
#include "cpu/linear/stream_sums.h"
#include "cpu/linear/stream_weights.h"
#include "cpu/simd/vectors.h"
#include "cpu/system/instruction_sets.h"

namespace molae::cpu {
namespace {

// The product of a call. The inner size is cut into pieces of which the inputs of all rows stay in the first cache
// while a group of columns passes. They are read again for every few columns: whole rows of them would come from the
// second cache, several times as much as the weights.
template <class Item>
struct StreamProduct {
  const Rows<float>& x;
  int64_t rows;
  const Item* weights;  // of the first column
  int64_t stride;       // from column to column
  int64_t inner, cols;
  float* out;
  int64_t out_stride;
  bool first;  // what is in out is overwritten, not added to
  Reading one_row;
  float* inputs;  // x as passes read it
};

// A piece of columns of weights that are multiplied together, and how far after it the piece lies that is read next.
template <class Item>
struct Columns {
  const Item* data;
  int64_t stride;
  int64_t next;
};

// Weights are asked for so that memory has the time: left to itself the processor starts anew on every column, and
// never runs as far ahead as memory needs where it has sums to compute, too. Some 4 KB are on their way, whatever the
// columns among which they lie: at the end of a piece those of the next.
template <int Pair, int C, class Item>
class Ahead {
 public:
  MOLAE_INLINE Ahead(const Columns<Item>& w, int64_t piece)
      : at_(w.data + std::min(kElements, piece)), end_(w.data + piece), next_(w.data + w.next) {}

  // Of the first column.
  MOLAE_INLINE const Item* pair() {
    at_ = at_ == end_ ? next_ : at_;
    return std::exchange(at_, at_ + Pair);
  }

 private:
  static constexpr int64_t kBytes = 4096;
  static constexpr int64_t kElements = kBytes / (C * Pair * sizeof(Item)) * Pair;

  const Item* at_;
  const Item* end_;
  const Item* next_;
};

// The inputs of many rows are to stay in the first cache: their weights wait in the second.
template <int Lanes, int C, class Item>
MOLAE_INLINE void prefetch_pair(const Item* pair) {
  constexpr bool many_rows = C <= 3;
  constexpr int kFirstCache = 3, kSecondCache = 2;
#pragma GCC unroll 2
  for (size_t line = 0; line < 2 * Lanes * sizeof(Item); line += 64) {
    __builtin_prefetch(reinterpret_cast<const std::byte*>(pair) + line, 0, many_rows ? kSecondCache : kFirstCache);
  }
}

// GCC reads an input anew for every column, where it fits into an instruction: more than the processor can load.
template <class Floats>
MOLAE_INLINE void keep_in_register([[maybe_unused]] Floats& vector) {
#if defined(MOLAE_NAMES_INSTRUCTIONS)
  if constexpr (sizeof vector == 64) asm("" : "+v"(vector));
#endif
}

// all_sums[j] += x . w[j] for one row. Columns take turns, so that both vectors of a pair come from one load and
// weights need no registers of their own: with AVX2 there are not enough of them for eight columns otherwise.
template <template <int> class Weights, int Lanes, int C, class Item>
MOLAE_INLINE void stream_one_row(const float* x, int64_t piece, const Columns<Item>& w,
                                 const Sums<typename Vectors<Lanes>::Floats>& all_sums) {
  using Floats = typename Vectors<Lanes>::Floats;
  constexpr int kPair = 2 * Lanes;
  Floats sums[1][C];
  begin(sums, all_sums);
  Ahead<kPair, C, Item> ahead(w, piece);
  const Item* from = w.data;
  for (const Item* end = w.data + piece; from != end; from += kPair, x += kPair) {
    const Item* soon = ahead.pair();
    Floats first_input, second_input;
    load(first_input, x);
    load(second_input, x + Lanes);
#pragma GCC unroll 16
    for (int j = 0; j < C; ++j) {
      const Item* pair = from + j * w.stride;
      prefetch_pair<Lanes, C>(soon + j * w.stride);
      Floats first, second;
      Weights<Lanes>::template read<0>(first, pair);
      Weights<Lanes>::template read<1>(second, pair);
      sums[0][j] = (sums[0][j] + first * first_input) + second * second_input;
    }
  }
  keep(sums, all_sums);
}

// all_sums[i][j] += x[i] . w[j] for R rows and C columns: every weight is loaded once for all R rows and every input
// once for all C columns.
template <template <int> class Weights, int Lanes, int R, int C, class Item>
MOLAE_INLINE void stream_pass(const float* x, int64_t piece, const Columns<Item>& w,
                              const Sums<typename Vectors<Lanes>::Floats>& all_sums) {
  using Floats = typename Vectors<Lanes>::Floats;
  constexpr int kPair = 2 * Lanes;
  Floats sums[R][C];
  begin(sums, all_sums);
  Ahead<kPair, C, Item> ahead(w, piece);
  const Item* from = w.data;
  for (const Item* end = w.data + piece; from != end; from += kPair, x += R * kPair) {
    const Item* soon = ahead.pair();
    Floats weights[C];
#pragma GCC unroll 16
    for (int j = 0; j < C; ++j) {
      const Item* pair = from + j * w.stride;
      Weights<Lanes>::template read<0>(weights[j], pair);
      prefetch_pair<Lanes, C>(soon + j * w.stride);
    }
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      Floats input;
      load(input, x + i * kPair);
      keep_in_register(input);
#pragma GCC unroll 16
      for (int j = 0; j < C; ++j) sums[i][j] += weights[j] * input;
    }
#pragma GCC unroll 16
    for (int j = 0; j < C; ++j) Weights<Lanes>::template read<1>(weights[j], from + j * w.stride);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      Floats input;
      load(input, x + i * kPair + Lanes);
      keep_in_register(input);
#pragma GCC unroll 16
      for (int j = 0; j < C; ++j) sums[i][j] += weights[j] * input;
    }
  }
  keep(sums, all_sums);
}

// As stream_pass, for a number of rows that is known only now: R at most.
template <template <int> class Weights, int Lanes, int R, int C, class Item>
MOLAE_INLINE void stream_pass_of(int64_t rows, const float* x, int64_t piece, const Columns<Item>& w,
                                 const Sums<typename Vectors<Lanes>::Floats>& sums) {
  if constexpr (R == 1) {
    stream_one_row<Weights, Lanes, C>(x, piece, w, sums);
  } else {
    if (rows == R) return stream_pass<Weights, Lanes, R, C>(x, piece, w, sums);
    stream_pass_of<Weights, Lanes, R - 1, C>(rows, x, piece, w, sums);
  }
}

// C columns against all rows, R at most in a pass: the weights stay in the first cache meanwhile.
template <template <int> class Weights, int Lanes, int R, int C, class Item>
MOLAE_INLINE void stream_columns(const float* x, int64_t rows, int64_t piece, Columns<Item> w,
                                 const Sums<typename Vectors<Lanes>::Floats>& sums) {
  const int64_t passes = passes_of(rows, Lanes);
  for (int64_t index = 0; index < passes; ++index) {
    const Pass pass = pass_at(index, passes, rows);
    stream_pass_of<Weights, Lanes, R, C>(pass.rows, x + pass.row * piece, piece, w, sums.from(pass.row, 0));
    w.next = 0;  // asked for once
  }
}

// What the vectors left of the inner size.
template <template <int> class Weights, class Item>
MOLAE_INLINE void add_rest(const float* x, const Item* w, int64_t rest, int64_t stride, int64_t cols, float* out) {
  for (int64_t j = 0; j < cols; ++j) {
    for (int64_t k = 0; k < rest; ++k) out[j] += Weights<8>::one(w[j * stride + k]) * x[k];
  }
}

// A piece of columns [col, col + cols), at most a group. `next` is the piece that is read after it.
template <template <int> class Weights, int Lanes, int C, class Item>
MOLAE_INLINE void stream_piece(const StreamProduct<Item>& p, const float* x, int64_t piece, const Item* weights,
                               int64_t cols, const Item* next, const Sums<typename Vectors<Lanes>::Floats>& sums) {
  constexpr int R = rows_of_pass(C, Lanes);
  const int64_t apart = cols / C;
  for (int64_t j = 0; j < apart; ++j) {
    const Item* data = weights + j * p.stride;
    const Columns<Item> columns{data, apart * p.stride, j + 1 < apart ? p.stride : next - data};
    stream_columns<Weights, Lanes, R, C>(x, p.rows, piece, columns, sums.from(0, j * C));
  }
  for (int64_t j = apart * C; j < cols; ++j) {
    const Item* data = weights + j * p.stride;
    const Columns<Item> columns{data, p.stride, j + 1 < cols ? p.stride : next - data};
    stream_columns<Weights, Lanes, R, 1>(x, p.rows, piece, columns, sums.from(0, j));
  }
}

// Columns [col, col + cols), at most a group.
template <template <int> class Weights, int Lanes, int C, class Item>
MOLAE_INLINE void stream_group(const StreamProduct<Item>& p, const Pieces& pieces, int64_t col, int64_t cols) {
  typename Vectors<Lanes>::Floats sums[kStreamRows * kSumCols];
  const Item* weights = p.weights + col * p.stride;
  const Item* after = col + cols < p.cols ? weights + cols * p.stride : weights;
  int64_t begin = 0;
  do {
    const int64_t piece = std::min(pieces.length, pieces.whole - begin);
    const Item* next = begin + piece < pieces.whole ? weights + begin + piece : after;
    stream_piece<Weights, Lanes, C>(p, p.inputs + begin * p.rows, piece, weights + begin, cols, next,
                                    {sums, begin > 0});
    begin += piece;
  } while (begin < pieces.whole);
  const int64_t rest = p.inner - pieces.whole;
  for (int64_t i = 0; i < p.rows; ++i) {
    float* out = p.out + i * p.out_stride + col;
    finish<Lanes, C>(sums + i * kSumCols, cols, p.first, out);
    if (rest > 0) add_rest<Weights>(p.x.row(i) + pieces.whole, weights + pieces.whole, rest, p.stride, cols, out);
  }
}

template <template <int> class Weights, int Lanes, int C, class Item>
MOLAE_INLINE void stream_groups(const StreamProduct<Item>& p, const Pieces& pieces) {
  for (int64_t col = 0; col < p.cols; col += kSumCols) {
    stream_group<Weights, Lanes, C>(p, pieces, col, std::min(kSumCols, p.cols - col));
  }
}

// x . w for one row of each, whose pairs of vectors lie side by side.
template <template <int> class Weights, int Lanes, class Item>
MOLAE_INLINE typename Vectors<Lanes>::Floats stream_run(const float* x, const Item* w, int64_t whole) {
  using Floats = typename Vectors<Lanes>::Floats;
  constexpr int kPair = 2 * Lanes, kPairs = 2;  // of sums: enough that none is waited for
  Floats sums[kPairs][2] = {};
  const auto add = [&](int64_t k, Floats(&to)[2]) __attribute__((always_inline)) {
    Floats weights[2], inputs[2];
    Weights<Lanes>::template read<0>(weights[0], w + k);
    Weights<Lanes>::template read<1>(weights[1], w + k);
    load(inputs[0], x + k);
    load(inputs[1], x + k + Lanes);
    to[0] += weights[0] * inputs[0];
    to[1] += weights[1] * inputs[1];
  };
  int64_t k = 0;
  for (; k + kPairs * kPair <= whole; k += kPairs * kPair) {
#pragma GCC unroll 2
    for (int i = 0; i < kPairs; ++i) add(k + i * kPair, sums[i]);
  }
  for (; k < whole; k += kPair) add(k, sums[0]);
  return (sums[0][0] + sums[0][1]) + (sums[1][0] + sums[1][1]);
}

// One row of inputs against one column after the other, in one long run, without requests.
template <template <int> class Weights, int Lanes, class Item>
MOLAE_INLINE void stream_runs(const StreamProduct<Item>& p) {
  const int64_t whole = p.inner / (2 * Lanes) * (2 * Lanes);
  arrange<Lanes, Weights<Lanes>::kSplit>(p.x, 1, 0, whole, p.inputs);
  typename Vectors<Lanes>::Floats sums[kSumCols];
  for (int64_t col = 0; col < p.cols; col += kSumCols) {
    const int64_t cols = std::min(kSumCols, p.cols - col);
    const Item* weights = p.weights + col * p.stride;
    for (int64_t j = 0; j < cols; ++j) {
      sums[j] = stream_run<Weights, Lanes>(p.inputs, weights + j * p.stride, whole);
    }
    finish<Lanes, 1>(sums, cols, p.first, p.out + col);
    if (p.inner > whole) {
      add_rest<Weights>(p.x.row(0) + whole, weights + whole, p.inner - whole, p.stride, cols, p.out + col);
    }
  }
}

template <template <int> class Weights, int Lanes, class Item>
MOLAE_INLINE void stream(const StreamProduct<Item>& p) {
  if (p.rows == 1 && p.one_row == Reading::Runs) return stream_runs<Weights, Lanes>(p);
  const Pieces pieces = cut_inner<Lanes>(p.rows, p.inner);
  for (int64_t begin = 0; begin < pieces.whole; begin += pieces.length) {
    arrange<Lanes, Weights<Lanes>::kSplit>(p.x, p.rows, begin, std::min(pieces.length, pieces.whole - begin),
                                           p.inputs + begin * p.rows);
  }
  // Fewer rows leave registers for more columns.
  const int64_t passes = passes_of(p.rows, Lanes);
  const int64_t most = pass_at(passes - 1, passes, p.rows).rows;
  if (most <= rows_of_pass(8, Lanes)) return stream_groups<Weights, Lanes, 8>(p, pieces);
  if (most <= rows_of_pass(6, Lanes)) return stream_groups<Weights, Lanes, 6>(p, pieces);
  if (most <= rows_of_pass(4, Lanes)) return stream_groups<Weights, Lanes, 4>(p, pieces);
  if (most <= rows_of_pass(3, Lanes)) return stream_groups<Weights, Lanes, 3>(p, pieces);
  if (most <= rows_of_pass(2, Lanes)) return stream_groups<Weights, Lanes, 2>(p, pieces);
  if constexpr (Lanes == 8) stream_groups<Weights, Lanes, 1>(p, pieces);
}

template <class Item>
using Stream = void (*)(const StreamProduct<Item>&);

// The kernels of one instruction set.
struct StreamKernel {
  Stream<float> f32;
  Stream<uint16_t> bf16, f16;
};

#define MOLAE_STREAM(name, Item, attributes, body) \
  attributes void name(const StreamProduct<Item>& product) { body(product); }

MOLAE_STREAM(plain_f32, float, MOLAE_PLAIN, (stream<F32Weights, 8>))
MOLAE_STREAM(plain_bf16, uint16_t, MOLAE_PLAIN, (stream<BF16Weights, 8>))
MOLAE_STREAM(plain_f16, uint16_t, MOLAE_PLAIN, (stream<F16Weights, 8>))
constexpr StreamKernel kPlain = {plain_f32, plain_bf16, plain_f16};
#if defined(__x86_64__)
MOLAE_STREAM(avx2_f32, float, MOLAE_AVX2, (stream<F32Weights, 8>))
MOLAE_STREAM(avx2_bf16, uint16_t, MOLAE_AVX2, (stream<BF16Weights, 8>))
MOLAE_STREAM(avx2_f16, uint16_t, MOLAE_AVX2, (stream<F16CWeights, 8>))
MOLAE_STREAM(avx512_f32, float, MOLAE_AVX512, (stream<F32Weights, 16>))
MOLAE_STREAM(avx512_bf16, uint16_t, MOLAE_AVX512, (stream<BF16Weights, 16>))
MOLAE_STREAM(avx512_f16, uint16_t, MOLAE_AVX512, (stream<F16CWeights, 16>))
constexpr StreamKernel kAvx2 = {avx2_f32, avx2_bf16, avx2_f16};
constexpr StreamKernel kAvx512 = {avx512_f32, avx512_bf16, avx512_f16};
#endif

const StreamKernel& stream_kernel() { return MOLAE_BEST_OF(kPlain, kAvx2, kAvx512); }

}  // namespace

int64_t most_streamed_rows() { return instructions() == Instructions::Avx512 ? kStreamRows : kMostPassRows; }

Reading one_row_reading(DType dtype) {
  const bool narrow = instructions() != Instructions::Avx512;
  return reads_ahead() || (dtype == DType::F32 && narrow) ? Reading::Runs : Reading::Columns;
}

void stream_rows(const Rows<float>& x, int64_t rows, const Tensor& weight, int64_t col, int64_t cols, float* out,
                 int64_t out_stride, float* scratch, Reading one_row) {
  const DType dtype = weight.dtype();
  if (dtype == DType::Q8 || dtype == DType::Q4) {
    return stream_blocks(x, rows, weight, col, cols, out, out_stride, scratch);
  }
  const StreamKernel& kernel = stream_kernel();
  const int64_t inner = weight.cols();
  const auto product = [&]<class Item>(const Item* weights) {
    return StreamProduct<Item>{x,       rows,   weights + col * inner, inner, inner, cols, out, out_stride, true,
                               one_row, scratch};
  };
  switch (dtype) {
    case DType::F32:
      return kernel.f32(product(weight.as<const float>()));
    case DType::BF16:
      return kernel.bf16(product(weight.as<const uint16_t>()));
    case DType::F16:
      return kernel.f16(product(weight.as<const uint16_t>()));
    default:
      fail(ErrorCode::DTypeMismatch, "Cannot stream weights of ", dtype_name(dtype));
  }
}

void stream_block(const Rows<float>& x, int64_t rows, const WideBlock& block, bool first, float* sums,
                  int64_t sums_stride, float* scratch) {
  // Out of a cache: what a pass over several columns saves is loads of inputs.
  stream_kernel().f32({x, rows, block.data, block.stride, block.inner, block.cols, sums, sums_stride, first,
                       Reading::Columns, scratch});
}

}  // namespace molae::cpu
