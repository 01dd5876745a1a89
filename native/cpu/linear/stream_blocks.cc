#include "cpu/linear/stream_blocks.h"

#include <algorithm>
#include <bit>

#include "core/checked.h"
#include "core/error.h"
#include "core/tensor/blocks.h"
#include "cpu/linear/stream_kernel.h"
#include "cpu/simd/multiversion.h"
#include "cpu/simd/vectors.h"
#include "cpu/system/instruction_sets.h"

namespace molae::cpu {
namespace {

constexpr int kVectors = kBlock / kLanes;

typedef uint16_t Halves8 __attribute__((vector_size(16)));

// The integers of a block as four vectors of floats. In a word of blocks lie elements that are not neighbours: as the
// vectors have them, so the inputs are ordered once (`element`), which is cheaper than ordering every weight. Each
// gives its integers times kUnit, plus kOffset where that saves work.
struct Q8Weights {
  using Block = Q8Block;
  static constexpr float kUnit = 0x1p24f;  // exact: what is below the byte is 0
  static constexpr float kOffset = 0;
  static constexpr int element(int vector, int lane) { return 4 * lane + vector; }

  static MOLAE_INLINE void integers(Floats8 (&to)[kVectors], const Block& block) {
    Words8 words;
    load(words, block.values);
    to[0] = signed_floats(words << 24);
    to[1] = signed_floats((words << 16) & 0xff000000u);
    to[2] = signed_floats((words << 8) & 0xff000000u);
    to[3] = signed_floats(words & 0xff000000u);
  }

 private:
  static MOLAE_INLINE Floats8 signed_floats(const Words8& words) {
    return __builtin_convertvector(std::bit_cast<Masks8>(words), Floats8);
  }
};

struct Q4Weights {
  using Block = Q4Block;
  static constexpr float kUnit = 1;
  static constexpr float kOffset = 8;
  static constexpr int element(int vector, int lane) { return 2 * lane + vector / 2 + (vector % 2 == 0 ? 0 : 16); }

  static MOLAE_INLINE void integers(Floats8 (&to)[kVectors], const Block& block) {
    Halves8 pairs;
    load(pairs, block.pairs);
    const Masks8 words = __builtin_convertvector(pairs, Masks8);
    to[0] = __builtin_convertvector(words & 15, Floats8);
    to[1] = __builtin_convertvector((words >> 4) & 15, Floats8);
    to[2] = __builtin_convertvector((words >> 8) & 15, Floats8);
    to[3] = __builtin_convertvector(words >> 12, Floats8);
  }
};

// The scale of a block in all lanes, by plain arithmetic and by the instruction for it.
struct PlainScale {
  static MOLAE_INLINE void read(Floats8& to, const uint16_t* half) {
    const Words8 bits = Words8{} + *half;
    const Words8 magnitude = bits & 0x7fffu;
    const Floats8 scaled = std::bit_cast<Floats8>(magnitude << 13) * 0x1p112f;
    const Words8 special = std::bit_cast<Words8>(std::bit_cast<Masks8>(magnitude) >= 0x7c00) & 0x7f800000u;
    to = std::bit_cast<Floats8>(std::bit_cast<Words8>(scaled) | special | ((bits & 0x8000u) << 16));
  }
};

#if defined(MOLAE_NAMES_INSTRUCTIONS)
struct F16CScale {
  static MOLAE_INLINE void read(Floats8& to, const uint16_t* half) {
    Halves8 halves;
    asm("vpbroadcastw %1, %0" : "=x"(halves) : "m"(*half));
    asm("vcvtph2ps %1, %0" : "=x"(to) : "x"(halves));
  }
};
#else
using F16CScale = PlainScale;
#endif

// The inputs of one row, block by block as the vectors of weights have them, and what kOffset adds to a lane's sum.
struct Input {
  const float* values;   // [blocks][kBlock]
  const float* offsets;  // [blocks]
};

// R rows and C weight rows: a block is unpacked once for all R rows.
template <class Weights, class Scale, int R, int C>
MOLAE_INLINE void stream_block(const Input* x, const typename Weights::Block* w, int64_t blocks, float* out,
                               int64_t out_stride) {
  Floats8 sums[R][C];
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < C; ++j) sums[i][j] = Floats8{};
  }
  for (int64_t b = 0; b < blocks; ++b) {
#pragma GCC unroll 8
    for (int j = 0; j < C; ++j) {
      const typename Weights::Block* block = w + j * blocks + b;
      __builtin_prefetch(block + C * blocks, 0, 2);
      Floats8 integers[kVectors], scale;
      Weights::integers(integers, *block);
      Scale::read(scale, &block->scale);
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i) {
        Floats8 sum = Floats8{};
        if constexpr (Weights::kOffset != 0) sum -= x[i].offsets[b];
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) {
          Floats8 in;
          load(in, x[i].values + b * kBlock + v * kLanes);
          sum += integers[v] * in;
        }
        sums[i][j] += sum * scale;
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < C; ++j) out[i * out_stride + j] = sum_of_lanes(sums[i][j]) / Weights::kUnit;
  }
}

// C weight rows against all rows of x, which stay in the cache meanwhile.
template <class Weights, class Scale, int C>
MOLAE_INLINE void stream_columns(const Input* x, int64_t rows, const typename Weights::Block* w, int64_t blocks,
                                 float* out, int64_t out_stride) {
  int64_t i = 0;
  for (; i + 3 <= rows; i += 3) {
    stream_block<Weights, Scale, 3, C>(x + i, w, blocks, out + i * out_stride, out_stride);
  }
  float* rest = out + i * out_stride;
  if (rows - i == 1) stream_block<Weights, Scale, 1, C>(x + i, w, blocks, rest, out_stride);
  if (rows - i == 2) stream_block<Weights, Scale, 2, C>(x + i, w, blocks, rest, out_stride);
}

template <class Weights, class Scale>
MOLAE_INLINE void stream(const Input* x, int64_t rows, const typename Weights::Block* w, int64_t blocks, int64_t cols,
                         float* out, int64_t out_stride) {
  int64_t j = 0;
  // Fewer rows leave registers for more columns.
  if (rows == 1) {
    for (; j + 4 <= cols; j += 4) stream_block<Weights, Scale, 1, 4>(x, w + j * blocks, blocks, out + j, out_stride);
  }
  for (; j + 2 <= cols; j += 2) {
    stream_columns<Weights, Scale, 2>(x, rows, w + j * blocks, blocks, out + j, out_stride);
  }
  for (; j < cols; ++j) stream_columns<Weights, Scale, 1>(x, rows, w + j * blocks, blocks, out + j, out_stride);
}

template <class Weights>
using Stream = void (*)(const Input*, int64_t, const typename Weights::Block*, int64_t, int64_t, float*, int64_t);

struct BlockKernel {
  Stream<Q8Weights> q8;
  Stream<Q4Weights> q4;
};

MOLAE_MULTIVERSION void stream_q8(const Input* x, int64_t rows, const Q8Block* w, int64_t blocks, int64_t cols,
                                  float* out, int64_t out_stride) {
  stream<Q8Weights, PlainScale>(x, rows, w, blocks, cols, out, out_stride);
}

MOLAE_MULTIVERSION void stream_q4(const Input* x, int64_t rows, const Q4Block* w, int64_t blocks, int64_t cols,
                                  float* out, int64_t out_stride) {
  stream<Q4Weights, PlainScale>(x, rows, w, blocks, cols, out, out_stride);
}

constexpr BlockKernel kPlain = {stream_q8, stream_q4};

#if defined(__x86_64__)
MOLAE_AVX2 void stream_q8_f16c(const Input* x, int64_t rows, const Q8Block* w, int64_t blocks, int64_t cols, float* out,
                               int64_t out_stride) {
  stream<Q8Weights, F16CScale>(x, rows, w, blocks, cols, out, out_stride);
}

MOLAE_AVX2 void stream_q4_f16c(const Input* x, int64_t rows, const Q4Block* w, int64_t blocks, int64_t cols, float* out,
                               int64_t out_stride) {
  stream<Q4Weights, F16CScale>(x, rows, w, blocks, cols, out, out_stride);
}

constexpr BlockKernel kF16C = {stream_q8_f16c, stream_q4_f16c};
#endif

// The inputs in the order of the weights, missing ones 0, and the offsets.
template <class Weights>
MOLAE_INLINE void arrange(const float* from, int64_t inner, float* values, float* offsets) {
  for (int64_t begin = 0; begin < inner; begin += kBlock) {
    const int64_t present = std::min(kBlock, inner - begin);
    float sum = 0;
    for (int64_t i = 0; i < present; ++i) sum += from[begin + i];
    *offsets++ = sum * (Weights::kOffset / kLanes);
    for (int v = 0; v < kVectors; ++v) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const int element = Weights::element(v, lane);
        *values++ = element < present ? from[begin + element] : 0.0f;
      }
    }
  }
}

template <class Weights>
void run(const Rows<float>& x, int64_t rows, const Tensor& weight, int64_t col, int64_t cols, float* out,
         int64_t out_stride, float* scratch, Stream<Weights> stream) {
  const int64_t inner = weight.cols();
  const int64_t blocks = ceil_divide(inner, kBlock);
  Input inputs[kStreamRows];
  for (int64_t i = 0; i < rows; ++i) {
    float* values = scratch + i * blocks * (kBlock + 1);
    float* offsets = values + blocks * kBlock;
    arrange<Weights>(x.row(i), inner, values, offsets);
    inputs[i] = {values, offsets};
  }
  stream(inputs, rows, weight.as<const typename Weights::Block>() + col * blocks, blocks, cols, out, out_stride);
}

}  // namespace

void stream_blocks(const Rows<float>& x, int64_t rows, const Tensor& weight, int64_t col, int64_t cols, float* out,
                   int64_t out_stride, float* scratch) {
  const BlockKernel& kernel = MOLAE_BEST_OF(kPlain, kF16C, kF16C);
  switch (weight.dtype()) {
    case DType::Q8:
      return run<Q8Weights>(x, rows, weight, col, cols, out, out_stride, scratch, kernel.q8);
    case DType::Q4:
      return run<Q4Weights>(x, rows, weight, col, cols, out, out_stride, scratch, kernel.q4);
    default:
      fail(ErrorCode::DTypeMismatch, "Weights of ", dtype_name(weight.dtype()), " have no blocks");
  }
}

}  // namespace molae::cpu
