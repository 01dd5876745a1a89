#include "cpu/stream_kernel.h"

#include <bit>
#include <cstring>

#include "core/error.h"
#include "core/half.h"
#include "cpu/processor.h"
#include "cpu/stream_blocks.h"
#include "cpu/vectors.h"

namespace molae::cpu {
namespace {

template <int Lanes>
struct Vectors {
  typedef float Floats __attribute__((vector_size(Lanes * 4)));
  typedef uint32_t Words __attribute__((vector_size(Lanes * 4)));
  typedef int32_t Masks __attribute__((vector_size(Lanes * 4)));
  typedef uint16_t Halves __attribute__((vector_size(Lanes * 2), aligned(2), may_alias));
};

// How two vectors' worth of weights become floats. Of pairs of halves the first vector has the even and the second the
// odd ones: the inputs are brought into the same order once (split_pairs), which is cheaper than ordering every weight.
template <int Lanes>
struct F32Weights {
  using Item = float;
  using Floats = typename Vectors<Lanes>::Floats;
  static MOLAE_INLINE void load_block(Floats& first, Floats& second, const float* from) {
    load(first, from);
    load(second, from + Lanes);
  }
  static float one(float w) { return w; }
};

template <int Lanes>
struct BF16Weights {
  using Item = uint16_t;
  using Floats = typename Vectors<Lanes>::Floats;
  static MOLAE_INLINE void load_block(Floats& first, Floats& second, const uint16_t* from) {
    typename Vectors<Lanes>::Words pairs;
    load(pairs, from);
    first = std::bit_cast<Floats>(pairs << 16);
    second = std::bit_cast<Floats>(pairs & 0xffff0000u);
  }
  static float one(uint16_t w) { return bf16_to_f32(w); }
};

template <int Lanes>
struct F16Weights {
  using Item = uint16_t;
  using Floats = typename Vectors<Lanes>::Floats;
  using Words = typename Vectors<Lanes>::Words;
  using Masks = typename Vectors<Lanes>::Masks;
  static MOLAE_INLINE void load_block(Floats& first, Floats& second, const uint16_t* from) {
    Words pairs;
    load(pairs, from);
    widen(first, pairs & 0xffffu);
    widen(second, pairs >> 16);
  }
  static MOLAE_INLINE void widen(Floats& to, const Words& bits) {
    const Words magnitude = bits & 0x7fffu;
    const Floats scaled = std::bit_cast<Floats>(magnitude << 13) * 0x1p112f;  // moves the exponent, subnormals too
    const Words special = std::bit_cast<Words>(std::bit_cast<Masks>(magnitude) >= 0x7c00) & 0x7f800000u;
    to = std::bit_cast<Floats>(std::bit_cast<Words>(scaled) | special | ((bits & 0x8000u) << 16));
  }
  static float one(uint16_t w) { return f16_to_f32(w); }
};

#if defined(__x86_64__)
// The instruction for it, by name: always_inline functions can't ask for an instruction set that their callers lack.
template <int Lanes>
struct F16CWeights {
  using Item = uint16_t;
  using Floats = typename Vectors<Lanes>::Floats;
  static MOLAE_INLINE void load_block(Floats& first, Floats& second, const uint16_t* from) {
    widen(first, from);
    widen(second, from + Lanes);
  }
  static MOLAE_INLINE void widen(Floats& to, const uint16_t* from) {
    asm("vcvtph2ps %1, %0" : "=v"(to) : "m"(*reinterpret_cast<const typename Vectors<Lanes>::Halves*>(from)));
  }
  static float one(uint16_t w) { return f16_to_f32(w); }
};
#endif

MOLAE_INLINE float sum_of(const Vectors<8>::Floats& sums) { return sum_of_lanes(sums); }

MOLAE_INLINE float sum_of(const Vectors<16>::Floats& sums) {
  Floats8 halves[2];
  __builtin_memcpy(halves, &sums, sizeof sums);
  return sum_of_lanes(halves[0] + halves[1]);
}

// out[i][j] = x[i] . w[j] for R rows and C weight rows: R * C running sums stay in registers, every weight is loaded
// once for all R rows and every input once for all C weight rows.
template <template <int> class Weights, int Lanes, int R, int C>
MOLAE_INLINE void stream_block(const float* const* x, const typename Weights<Lanes>::Item* w, int64_t inner, float* out,
                               int64_t out_stride) {
  using Floats = typename Vectors<Lanes>::Floats;
  constexpr int kPair = 2 * Lanes;
  Floats sums[R][C];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < C; ++j) sums[i][j] = Floats{};
  }
  int64_t k = 0;
  for (; k + kPair <= inner; k += kPair) {
    Floats inputs[R][2];
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      load(inputs[i][0], x[i] + k);
      load(inputs[i][1], x[i] + k + Lanes);
    }
#pragma GCC unroll 16
    for (int j = 0; j < C; ++j) {
      Floats first, second;
      const auto* pair = w + j * inner + k;
      // The rows that come next, so far ahead that memory has the time. Left to itself the processor starts anew on
      // every row, which halves the speed where rows are short.
#pragma GCC unroll 2
      for (size_t line = 0; line < sizeof(*pair) * kPair; line += 64) {
        __builtin_prefetch(reinterpret_cast<const std::byte*>(pair + C * inner) + line, 0, 2);
      }
      Weights<Lanes>::load_block(first, second, pair);
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i) sums[i][j] = (sums[i][j] + first * inputs[i][0]) + second * inputs[i][1];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < C; ++j) {
      float sum = sum_of(sums[i][j]);
      for (int64_t rest = k; rest < inner; ++rest) sum += Weights<Lanes>::one(w[j * inner + rest]) * x[i][rest];
      out[i * out_stride + j] = sum;
    }
  }
}

// C weight rows against all rows of x, four at a time: the weight rows stay in the cache meanwhile.
template <template <int> class Weights, int Lanes, int C>
MOLAE_INLINE void stream_columns(const float* const* x, int64_t rows, const typename Weights<Lanes>::Item* w,
                                 int64_t inner, float* out, int64_t out_stride) {
  int64_t i = 0;
  for (; i + 4 <= rows; i += 4) stream_block<Weights, Lanes, 4, C>(x + i, w, inner, out + i * out_stride, out_stride);
  float* rest = out + i * out_stride;
  switch (rows - i) {
    case 1:
      return stream_block<Weights, Lanes, 1, C>(x + i, w, inner, rest, out_stride);
    case 2:
      return stream_block<Weights, Lanes, 2, C>(x + i, w, inner, rest, out_stride);
    case 3:
      return stream_block<Weights, Lanes, 3, C>(x + i, w, inner, rest, out_stride);
  }
}

template <template <int> class Weights, int Lanes, int C>
MOLAE_INLINE void stream(const float* const* x, int64_t rows, const typename Weights<Lanes>::Item* w, int64_t inner,
                         int64_t cols, float* out, int64_t out_stride) {
  int64_t j = 0;
  // Fewer rows leave registers for more columns.
  if (rows == 1) {
    for (; j + 8 <= cols; j += 8) stream_block<Weights, Lanes, 1, 8>(x, w + j * inner, inner, out + j, out_stride);
  } else if (rows == 2) {
    for (; j + 4 <= cols; j += 4) stream_block<Weights, Lanes, 2, 4>(x, w + j * inner, inner, out + j, out_stride);
  }
  for (; j + C <= cols; j += C) {
    stream_columns<Weights, Lanes, C>(x, rows, w + j * inner, inner, out + j, out_stride);
  }
  for (; j < cols; ++j) stream_columns<Weights, Lanes, 1>(x, rows, w + j * inner, inner, out + j, out_stride);
}

// x . w for one row of each, in four running sums.
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

// f32 weights of which one row of inputs reads one row after the other, in one long run.
template <int C>
MOLAE_INLINE void stream_runs(const float* const* x, int64_t rows, const float* w, int64_t inner, int64_t cols,
                              float* out, int64_t out_stride) {
  if (rows != 1) return stream<F32Weights, 8, C>(x, rows, w, inner, cols, out, out_stride);
  for (int64_t j = 0; j < cols; ++j) out[j] = stream_row(x[0], w + j * inner, inner);
}

// Whole pairs of vectors of a row with the even elements before the odd ones; the rest as it is.
template <int Lanes>
MOLAE_INLINE void split(const float* from, float* to, int64_t count) {
  int64_t k = 0;
#if defined(__clang__)
  for (; k + 2 * Lanes <= count; k += 2 * Lanes) {
    for (int lane = 0; lane < Lanes; ++lane) {
      to[k + lane] = from[k + 2 * lane];
      to[k + Lanes + lane] = from[k + 2 * lane + 1];
    }
  }
#else  // which would not vectorize that
  using Floats = typename Vectors<Lanes>::Floats;
  using Masks = typename Vectors<Lanes>::Masks;
  Masks even;
  for (int lane = 0; lane < Lanes; ++lane) even[lane] = 2 * lane;
  const Masks odd = even + 1;
  for (; k + 2 * Lanes <= count; k += 2 * Lanes) {
    Floats first, second;
    load(first, from + k);
    load(second, from + k + Lanes);
    store(to + k, __builtin_shuffle(first, second, even));
    store(to + k + Lanes, __builtin_shuffle(first, second, odd));
  }
#endif
  std::memcpy(to + k, from + k, (count - k) * sizeof(float));
}

template <class Item>
using Stream = void (*)(const float* const* x, int64_t rows, const Item* w, int64_t inner, int64_t cols, float* out,
                        int64_t out_stride);

// The kernels of one instruction set.
struct StreamKernel {
  void (*split_pairs)(const float* from, float* to, int64_t count);
  bool f16_pairs;  // f16 weights want it too
  Stream<float> f32;
  Stream<uint16_t> bf16, f16;
};

// One function for each instruction set: the width of the vectors is part of the source, so clones of one function
// would not do. One row of f32 weights is read as memory gives it fastest: in one run on an AMD EPYC with AVX2, eight
// rows at a time on a Xeon with AVX-512 (88% of what it reads at best against 80%).
#define MOLAE_STREAM(name, Item, attributes, body)                                                                  \
  attributes void name(const float* const* x, int64_t rows, const Item* w, int64_t inner, int64_t cols, float* out, \
                       int64_t out_stride) {                                                                        \
    body(x, rows, w, inner, cols, out, out_stride);                                                                 \
  }
#define MOLAE_PLAIN

#define MOLAE_SPLIT(name, lanes, attributes) \
  attributes void name(const float* from, float* to, int64_t count) { split<lanes>(from, to, count); }

MOLAE_SPLIT(plain_split, 8, MOLAE_PLAIN)
MOLAE_STREAM(plain_f32, float, MOLAE_PLAIN, stream_runs<3>)
MOLAE_STREAM(plain_bf16, uint16_t, MOLAE_PLAIN, (stream<BF16Weights, 8, 3>))
MOLAE_STREAM(plain_f16, uint16_t, MOLAE_PLAIN, (stream<F16Weights, 8, 3>))
constexpr StreamKernel kPlain = {plain_split, true, plain_f32, plain_bf16, plain_f16};
#if defined(__x86_64__)
#define MOLAE_AVX2 __attribute__((target("avx2,fma,f16c")))
#define MOLAE_AVX512 __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,fma")))
MOLAE_SPLIT(avx2_split, 8, MOLAE_AVX2)
MOLAE_STREAM(avx2_f32, float, MOLAE_AVX2, stream_runs<3>)
MOLAE_STREAM(avx2_bf16, uint16_t, MOLAE_AVX2, (stream<BF16Weights, 8, 3>))
MOLAE_STREAM(avx2_f16, uint16_t, MOLAE_AVX2, (stream<F16CWeights, 8, 3>))
MOLAE_SPLIT(avx512_split, 16, MOLAE_AVX512)
MOLAE_STREAM(avx512_f32, float, MOLAE_AVX512, (stream<F32Weights, 16, 4>))
MOLAE_STREAM(avx512_bf16, uint16_t, MOLAE_AVX512, (stream<BF16Weights, 16, 4>))
MOLAE_STREAM(avx512_f16, uint16_t, MOLAE_AVX512, (stream<F16CWeights, 16, 4>))
constexpr StreamKernel kAvx2 = {avx2_split, false, avx2_f32, avx2_bf16, avx2_f16};
constexpr StreamKernel kAvx512 = {avx512_split, false, avx512_f32, avx512_bf16, avx512_f16};
#endif

const StreamKernel& stream_kernel() {
#if defined(__x86_64__)
  if (instructions() == Instructions::Avx512) return kAvx512;
  if (has_f16c()) return kAvx2;
#endif
  return kPlain;
}

}  // namespace

void stream_rows(const Rows<float>& x, int64_t rows, const Tensor& weight, int64_t col, int64_t cols, float* out,
                 int64_t out_stride, float* scratch) {
  const StreamKernel& kernel = stream_kernel();
  const int64_t inner = weight.cols();
  const DType dtype = weight.dtype();
  const bool pairs = dtype == DType::BF16 || (dtype == DType::F16 && kernel.f16_pairs);
  const float* row_pointers[kStreamRows];
  for (int64_t i = 0; i < rows; ++i) {
    row_pointers[i] = x.row(i);
    if (!pairs) continue;
    kernel.split_pairs(x.row(i), scratch + i * inner, inner);
    row_pointers[i] = scratch + i * inner;
  }
  switch (dtype) {
    case DType::F32:
      return kernel.f32(row_pointers, rows, weight.as<const float>() + col * inner, inner, cols, out, out_stride);
    case DType::BF16:
      return kernel.bf16(row_pointers, rows, weight.as<const uint16_t>() + col * inner, inner, cols, out, out_stride);
    case DType::F16:
      return kernel.f16(row_pointers, rows, weight.as<const uint16_t>() + col * inner, inner, cols, out, out_stride);
    case DType::Q8:
    case DType::Q4:
      return stream_blocks(x, rows, weight, col, cols, out, out_stride, scratch);
    default:
      fail(ErrorCode::DTypeMismatch, "Cannot stream weights of ", dtype_name(dtype));
  }
}

}  // namespace molae::cpu
