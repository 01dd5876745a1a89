#include "cpu/stream_kernel.h"

#include <bit>
#include <cstring>

#include "core/error.h"
#include "core/half.h"
#include "cpu/multiversion.h"
#include "cpu/processor.h"
#include "cpu/stream_blocks.h"
#include "cpu/vectors.h"

namespace molae::cpu {
namespace {

// How sixteen weights become two vectors of floats. Of pairs of halves the first vector has the even and the second the
// odd ones: the inputs are brought into the same order once (split_pairs), which is cheaper than ordering every weight.
constexpr int64_t kBlock = 2 * kLanes;

struct F32Weights {
  using Item = float;
  static MOLAE_INLINE void load_block(Floats8& first, Floats8& second, const float* from) {
    load(first, from);
    load(second, from + kLanes);
  }
  static float one(float w) { return w; }
};

struct BF16Weights {
  using Item = uint16_t;
  static MOLAE_INLINE void load_block(Floats8& first, Floats8& second, const uint16_t* from) {
    Words8 pairs;
    load(pairs, from);
    first = std::bit_cast<Floats8>(pairs << 16);
    second = std::bit_cast<Floats8>(pairs & 0xffff0000u);
  }
  static float one(uint16_t w) { return bf16_to_f32(w); }
};

struct F16Weights {
  using Item = uint16_t;
  static MOLAE_INLINE void load_block(Floats8& first, Floats8& second, const uint16_t* from) {
    Words8 pairs;
    load(pairs, from);
    widen(first, pairs & 0xffffu);
    widen(second, pairs >> 16);
  }
  static MOLAE_INLINE void widen(Floats8& to, const Words8& bits) {
    const Words8 magnitude = bits & 0x7fffu;
    const Floats8 scaled = std::bit_cast<Floats8>(magnitude << 13) * 0x1p112f;  // moves the exponent, subnormals too
    const Words8 special = std::bit_cast<Words8>(std::bit_cast<Masks8>(magnitude) >= 0x7c00) & 0x7f800000u;
    to = std::bit_cast<Floats8>(std::bit_cast<Words8>(scaled) | special | ((bits & 0x8000u) << 16));
  }
  static float one(uint16_t w) { return f16_to_f32(w); }
};

#if defined(__x86_64__)
// The instruction for it, by name: always_inline functions can't ask for an instruction set that their callers lack.
struct F16CWeights {
  using Item = uint16_t;
  static MOLAE_INLINE void load_block(Floats8& first, Floats8& second, const uint16_t* from) {
    widen(first, from);
    widen(second, from + kLanes);
  }
  static MOLAE_INLINE void widen(Floats8& to, const uint16_t* from) {
    typedef uint16_t Halves __attribute__((vector_size(kLanes * 2), aligned(2), may_alias));
    asm("vcvtph2ps %1, %0" : "=x"(to) : "m"(*reinterpret_cast<const Halves*>(from)));
  }
  static float one(uint16_t w) { return f16_to_f32(w); }
};
#endif

// out[i][j] = x[i] . w[j] for R rows and C weight rows: R * C running sums stay in registers, every weight is loaded
// once for all R rows and every input once for all C weight rows.
template <class Weights, int R, int C>
MOLAE_INLINE void stream_block(const float* const* x, const typename Weights::Item* w, int64_t inner, float* out,
                               int64_t out_stride) {
  Floats8 sums[R][C];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < C; ++j) sums[i][j] = Floats8{};
  }
  int64_t k = 0;
  for (; k + kBlock <= inner; k += kBlock) {
    Floats8 inputs[R][2];
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      load(inputs[i][0], x[i] + k);
      load(inputs[i][1], x[i] + k + kLanes);
    }
#pragma GCC unroll 16
    for (int j = 0; j < C; ++j) {
      Floats8 first, second;
      const typename Weights::Item* block = w + j * inner + k;
      // The rows that come next, so far ahead that memory has the time. Left to itself the processor starts anew on
      // every row, which halves the speed where rows are short.
      __builtin_prefetch(block + C * inner, 0, 2);
      Weights::load_block(first, second, block);
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i) sums[i][j] = (sums[i][j] + first * inputs[i][0]) + second * inputs[i][1];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < C; ++j) {
      float sum = sum_of_lanes(sums[i][j]);
      for (int64_t rest = k; rest < inner; ++rest) sum += Weights::one(w[j * inner + rest]) * x[i][rest];
      out[i * out_stride + j] = sum;
    }
  }
}

// C weight rows against all rows of x, four at a time: the weight rows stay in the cache meanwhile.
template <class Weights, int C>
MOLAE_INLINE void stream_columns(const float* const* x, int64_t rows, const typename Weights::Item* w, int64_t inner,
                                 float* out, int64_t out_stride) {
  int64_t i = 0;
  for (; i + 4 <= rows; i += 4) stream_block<Weights, 4, C>(x + i, w, inner, out + i * out_stride, out_stride);
  float* rest = out + i * out_stride;
  switch (rows - i) {
    case 1:
      return stream_block<Weights, 1, C>(x + i, w, inner, rest, out_stride);
    case 2:
      return stream_block<Weights, 2, C>(x + i, w, inner, rest, out_stride);
    case 3:
      return stream_block<Weights, 3, C>(x + i, w, inner, rest, out_stride);
  }
}

// x . w for one row of each, in four running sums: f32 weights come in one long run.
MOLAE_INLINE float stream_row(const float* x, const float* w, int64_t inner) {
  constexpr int kSums = 4;
  Floats8 sums[kSums] = {};
  int64_t k = 0;
  for (; k + kSums * kLanes <= inner; k += kSums * kLanes) {
#pragma GCC unroll 4
    for (int i = 0; i < kSums; ++i) {
      Floats8 weights, inputs;
      load(weights, w + k + i * kLanes);
      load(inputs, x + k + i * kLanes);
      sums[i] += weights * inputs;
    }
  }
  float sum = sum_of_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; k < inner; ++k) sum += w[k] * x[k];
  return sum;
}

template <class Weights>
MOLAE_INLINE void stream(const float* const* x, int64_t rows, const typename Weights::Item* w, int64_t inner,
                         int64_t cols, float* out, int64_t out_stride) {
  int64_t j = 0;
  // Fewer rows leave registers for more columns.
  if (rows == 1) {
    for (; j + 8 <= cols; j += 8) stream_block<Weights, 1, 8>(x, w + j * inner, inner, out + j, out_stride);
  } else if (rows == 2) {
    for (; j + 4 <= cols; j += 4) stream_block<Weights, 2, 4>(x, w + j * inner, inner, out + j, out_stride);
  }
  for (; j + 3 <= cols; j += 3) stream_columns<Weights, 3>(x, rows, w + j * inner, inner, out + j, out_stride);
  for (; j < cols; ++j) stream_columns<Weights, 1>(x, rows, w + j * inner, inner, out + j, out_stride);
}

// One row reads its weights in one run or in eight at a time, as memory gives them fastest: on an AMD EPYC with AVX2
// that is one run, on a Xeon with AVX-512 eight (88% of what it reads at best against 80%).
MOLAE_MULTIVERSION void stream_f32(const float* const* x, int64_t rows, const float* w, int64_t inner, int64_t cols,
                                   float* out, int64_t out_stride, bool one_run) {
  if (rows != 1 || !one_run) return stream<F32Weights>(x, rows, w, inner, cols, out, out_stride);
  for (int64_t j = 0; j < cols; ++j) out[j] = stream_row(x[0], w + j * inner, inner);
}

MOLAE_MULTIVERSION void stream_bf16(const float* const* x, int64_t rows, const uint16_t* w, int64_t inner, int64_t cols,
                                    float* out, int64_t out_stride) {
  stream<BF16Weights>(x, rows, w, inner, cols, out, out_stride);
}

MOLAE_MULTIVERSION void stream_f16(const float* const* x, int64_t rows, const uint16_t* w, int64_t inner, int64_t cols,
                                   float* out, int64_t out_stride) {
  stream<F16Weights>(x, rows, w, inner, cols, out, out_stride);
}

#if defined(__x86_64__)
__attribute__((target("avx2,fma,f16c"))) void stream_f16c(const float* const* x, int64_t rows, const uint16_t* w,
                                                          int64_t inner, int64_t cols, float* out, int64_t out_stride) {
  stream<F16CWeights>(x, rows, w, inner, cols, out, out_stride);
}

#else
constexpr auto stream_f16c = stream_f16;
#endif

// Whole blocks of a row with the even elements before the odd ones; the rest as it is.
MOLAE_MULTIVERSION void split_pairs(const float* from, float* to, int64_t count) {
  int64_t k = 0;
  for (; k + kBlock <= count; k += kBlock) {
    for (int lane = 0; lane < kLanes; ++lane) {
      to[k + lane] = from[k + 2 * lane];
      to[k + kLanes + lane] = from[k + 2 * lane + 1];
    }
  }
  std::memcpy(to + k, from + k, (count - k) * sizeof(float));
}

}  // namespace

void stream_rows(const Rows<float>& x, int64_t rows, const Tensor& weight, int64_t col, int64_t cols, float* out,
                 int64_t out_stride, float* scratch) {
  const int64_t inner = weight.cols();
  const DType dtype = weight.dtype();
  const bool pairs = dtype == DType::BF16 || (dtype == DType::F16 && !has_f16c());
  const float* row_pointers[kStreamRows];
  for (int64_t i = 0; i < rows; ++i) {
    row_pointers[i] = x.row(i);
    if (!pairs) continue;
    split_pairs(x.row(i), scratch + i * inner, inner);
    row_pointers[i] = scratch + i * inner;
  }
  switch (dtype) {
    case DType::F32:
      return stream_f32(row_pointers, rows, weight.as<const float>() + col * inner, inner, cols, out, out_stride,
                        instructions() < Instructions::Avx512);
    case DType::BF16:
      return stream_bf16(row_pointers, rows, weight.as<const uint16_t>() + col * inner, inner, cols, out, out_stride);
    case DType::F16:
      return (pairs ? stream_f16 : stream_f16c)(row_pointers, rows, weight.as<const uint16_t>() + col * inner, inner,
                                                cols, out, out_stride);
    case DType::Q8:
    case DType::Q4:
      return stream_blocks(x, rows, weight, col, cols, out, out_stride, scratch);
    default:
      fail(ErrorCode::DTypeMismatch, "Cannot stream weights of ", dtype_name(dtype));
  }
}

}  // namespace molae::cpu
