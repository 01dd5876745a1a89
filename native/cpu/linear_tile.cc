#include "cpu/linear_tile.h"

#include <bit>
#include <cstring>

#include "core/half.h"
#include "cpu/blas.h"
#include "cpu/convert.h"
#include "cpu/multiversion.h"

namespace molae::cpu {
namespace {

// Up to this many rows a product only streams the weights through: reading them in their own dtype, without
// widening them in memory first, is what counts.
constexpr int64_t kStreamRows = 4;

constexpr int kLanes = 16;
typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));
typedef uint32_t Words __attribute__((vector_size(kLanes * 4)));

template <class Vector>
__attribute__((always_inline)) inline void load(Vector& to, const void* from) {
  __builtin_memcpy(&to, from, sizeof to);
}

struct F32Weights {
  using Item = float;
  static __attribute__((always_inline)) inline void load16(Floats& to, const float* from) { load(to, from); }
  static float one(float w) { return w; }
};

struct BF16Weights {
  using Item = uint16_t;
  static __attribute__((always_inline)) inline void load16(Floats& to, const uint16_t* from) {
    Halves halves;
    load(halves, from);
    to = std::bit_cast<Floats>(__builtin_convertvector(halves, Words) << 16);
  }
  static float one(uint16_t w) { return bf16_to_f32(w); }
};

// out[i][j] = x.row(i) . w[j] for R rows: every weight is loaded once.
template <class Weights, int R>
__attribute__((always_inline)) inline void stream_rows(const Rows<float>& x, const typename Weights::Item* w,
                                                       int64_t inner, int64_t cols, float* out, int64_t out_stride) {
  for (int64_t j = 0; j < cols; ++j) {
    const auto* weights = w + j * inner;
    Floats sums[R] = {};
    int64_t k = 0;
    for (; k + kLanes <= inner; k += kLanes) {
      Floats weight, input;
      Weights::load16(weight, weights + k);
      for (int i = 0; i < R; ++i) {
        load(input, x.row(i) + k);
        sums[i] += weight * input;
      }
    }
    for (int i = 0; i < R; ++i) {
      float sum = 0;
      for (int lane = 0; lane < kLanes; ++lane) sum += sums[i][lane];
      for (int64_t rest = k; rest < inner; ++rest) sum += Weights::one(weights[rest]) * x.row(i)[rest];
      out[i * out_stride + j] = sum;
    }
  }
}

template <class Weights>
__attribute__((always_inline)) inline void stream(const Rows<float>& x, int64_t rows, const typename Weights::Item* w,
                                                  int64_t inner, int64_t cols, float* out, int64_t out_stride) {
  switch (rows) {
    case 1:
      return stream_rows<Weights, 1>(x, w, inner, cols, out, out_stride);
    case 2:
      return stream_rows<Weights, 2>(x, w, inner, cols, out, out_stride);
    case 3:
      return stream_rows<Weights, 3>(x, w, inner, cols, out, out_stride);
    case 4:
      return stream_rows<Weights, 4>(x, w, inner, cols, out, out_stride);
  }
}

MOLAE_MULTIVERSION void stream_f32(const Rows<float>& x, int64_t rows, const float* w, int64_t inner, int64_t cols,
                                   float* out, int64_t out_stride) {
  stream<F32Weights>(x, rows, w, inner, cols, out, out_stride);
}

MOLAE_MULTIVERSION void stream_bf16(const Rows<float>& x, int64_t rows, const uint16_t* w, int64_t inner, int64_t cols,
                                    float* out, int64_t out_stride) {
  stream<BF16Weights>(x, rows, w, inner, cols, out, out_stride);
}

// True where a streaming kernel took the tile.
bool stream_tile(const Rows<float>& x, int64_t rows, const Tensor& weight, int64_t col, int64_t cols, float* out,
                 int64_t out_stride) {
  if (rows > kStreamRows) return false;
  const int64_t inner = weight.cols();
  if (weight.dtype() == DType::F32) {
    stream_f32(x, rows, weight.as<const float>() + col * inner, inner, cols, out, out_stride);
    return true;
  }
  if (weight.dtype() == DType::BF16) {
    stream_bf16(x, rows, weight.as<const uint16_t>() + col * inner, inner, cols, out, out_stride);
    return true;
  }
  return false;
}

bool stream_tile(const Rows<double>&, int64_t, const Tensor&, int64_t, int64_t, double*, int64_t) { return false; }

}  // namespace

template <class Real>
void linear_tile(const Rows<Real>& x, int64_t rows, const Tensor& weight, int64_t col, int64_t cols, Real* out,
                 int64_t out_stride, Real* scratch) {
  if (rows == 0 || cols == 0) return;
  if (stream_tile(x, rows, weight, col, cols, out, out_stride)) return;
  const int64_t inner = weight.cols();
  const Real* left = x.data;
  int64_t left_stride = x.stride;
  if (x.index) {
    for (int64_t i = 0; i < rows; ++i) std::memcpy(scratch + i * inner, x.row(i), inner * sizeof(Real));
    left = scratch;
    left_stride = inner;
  }
  const Real* right = weight.as<const Real>() + col * inner;
  if (weight.dtype() != (sizeof(Real) == 4 ? DType::F32 : DType::F64)) {
    Real* wide = scratch + kTileRows * inner;
    widen_elements(weight.dtype(), weight.as<const std::byte>() + col * inner * item_size(weight.dtype()), wide,
                   cols * inner);
    right = wide;
  }
  blas::gemm(false, true, rows, cols, inner, Real(1), left, left_stride, right, inner, Real(0), out, out_stride);
}

template void linear_tile<float>(const Rows<float>&, int64_t, const Tensor&, int64_t, int64_t, float*, int64_t, float*);
template void linear_tile<double>(const Rows<double>&, int64_t, const Tensor&, int64_t, int64_t, double*, int64_t,
                                  double*);

}  // namespace molae::cpu
