#include <algorithm>

#include "cuda/kernels/launch.h"
#include "cuda/logic/number.h"

namespace molae::cuda::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 16;

unsigned blocks_for(int64_t count) {
  return static_cast<unsigned>(std::min(kMaxBlocks, (count + kThreads - 1) / kThreads));
}

// Index of the first element of this thread and the distance to its next one.
__device__ __forceinline__ int64_t first_index() { return blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; }
__device__ __forceinline__ int64_t index_step() { return gridDim.x * static_cast<int64_t>(blockDim.x); }

template <class From, class To>
__global__ void convert_kernel(const From* from, To* to, int64_t count) {
  for (int64_t i = first_index(); i < count; i += index_step()) to[i] = Convert<To, From>::of(from[i]);
}

template <class T>
__global__ void scale_kernel(T* data, int64_t count, Sum<T> factor) {
  for (int64_t i = first_index(); i < count; i += index_step()) {
    data[i] = Convert<T, Sum<T>>::of(Convert<Sum<T>, T>::of(data[i]) * factor);
  }
}

template <class Bits>
__global__ void transpose_kernel(const Bits* from, Bits* to, int64_t rows, int64_t cols, int64_t col_blocks) {
  constexpr int kSide = 32;
  __shared__ Bits block[kSide][kSide + 1];
  const int64_t row0 = blockIdx.x / col_blocks * kSide;
  const int64_t col0 = blockIdx.x % col_blocks * kSide;
  for (int y = threadIdx.y; y < kSide; y += blockDim.y) {
    const int64_t row = row0 + y, col = col0 + threadIdx.x;
    if (row < rows && col < cols) block[y][threadIdx.x] = from[row * cols + col];
  }
  __syncthreads();
  for (int y = threadIdx.y; y < kSide; y += blockDim.y) {
    const int64_t row = row0 + threadIdx.x, col = col0 + y;
    if (row < rows && col < cols) to[col * rows + row] = block[threadIdx.x][y];
  }
}

template <class T>
__global__ void reverse_rows_kernel(const T* from, T* to, int64_t rows, int64_t cols, int64_t to_rows) {
  for (int64_t i = first_index(); i < to_rows * cols; i += index_step()) {
    to[i] = from[(rows - 1 - i / cols) * cols + i % cols];
  }
}

// The sign bit is the topmost one in every floating format.
template <class Bits>
__global__ void signed_permutation_kernel(const Bits* w, Bits* out, int64_t rows, int64_t cols, bool by_column,
                                          const int32_t* source, const int8_t* signs) {
  constexpr Bits kSign = static_cast<Bits>(Bits(1) << (8 * sizeof(Bits) - 1));
  for (int64_t at = first_index(); at < rows * cols; at += index_step()) {
    const int64_t i = at / cols, j = at % cols;
    const Bits value = by_column ? w[i * cols + source[j]] : w[source[i] * cols + j];
    out[at] = signs[by_column ? j : i] < 0 ? static_cast<Bits>(value ^ kSign) : value;
  }
}

__global__ void add_lower_kernel(const float* part, double* sums, int64_t n) {
  for (int64_t at = first_index(); at < n * n; at += index_step()) {
    if (at % n <= at / n) sums[at] += static_cast<double>(part[at]);
  }
}

// Calls visit with a value of the dtype's type.
template <class Visit>
cudaError_t by_type(DType dtype, Visit visit) {
  switch (dtype) {
    case DType::F32:
      return visit(float{});
    case DType::F64:
      return visit(double{});
    case DType::F16:
      return visit(F16{});
    case DType::BF16:
      return visit(BF16{});
    default:
      return cudaErrorInvalidValue;
  }
}

template <class Visit>
cudaError_t by_width(size_t item_bytes, Visit visit) {
  switch (item_bytes) {
    case 2:
      return visit(uint16_t{});
    case 4:
      return visit(uint32_t{});
    case 8:
      return visit(uint64_t{});
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace

cudaError_t convert(cudaStream_t stream, DType from_dtype, const void* from, DType to_dtype, void* to, int64_t count) {
  if (count == 0) return cudaSuccess;
  return by_type(from_dtype, [&](auto source) {
    return by_type(to_dtype, [&](auto target) {
      using From = decltype(source);
      using To = decltype(target);
      convert_kernel<From, To>
          <<<blocks_for(count), kThreads, 0, stream>>>(static_cast<const From*>(from), static_cast<To*>(to), count);
      return cudaGetLastError();
    });
  });
}

cudaError_t scale(cudaStream_t stream, DType dtype, void* data, int64_t count, double factor) {
  if (count == 0) return cudaSuccess;
  return by_type(dtype, [&](auto item) {
    using T = decltype(item);
    scale_kernel<T>
        <<<blocks_for(count), kThreads, 0, stream>>>(static_cast<T*>(data), count, static_cast<Sum<T>>(factor));
    return cudaGetLastError();
  });
}

cudaError_t transpose(cudaStream_t stream, size_t item_bytes, const void* from, void* to, int64_t rows, int64_t cols) {
  if (rows == 0 || cols == 0) return cudaSuccess;
  const int64_t row_blocks = (rows + 31) / 32, col_blocks = (cols + 31) / 32;
  if (row_blocks > INT32_MAX / col_blocks) return cudaErrorInvalidConfiguration;
  return by_width(item_bytes, [&](auto bits) {
    using Bits = decltype(bits);
    transpose_kernel<Bits><<<static_cast<unsigned>(row_blocks * col_blocks), dim3(32, 8), 0, stream>>>(
        static_cast<const Bits*>(from), static_cast<Bits*>(to), rows, cols, col_blocks);
    return cudaGetLastError();
  });
}

cudaError_t reverse_rows(cudaStream_t stream, DType dtype, const void* from, void* to, int64_t rows, int64_t cols,
                         int64_t to_rows) {
  if (to_rows == 0 || cols == 0) return cudaSuccess;
  return by_width(item_size(dtype), [&](auto bits) {
    using Bits = decltype(bits);
    reverse_rows_kernel<Bits><<<blocks_for(to_rows * cols), kThreads, 0, stream>>>(
        static_cast<const Bits*>(from), static_cast<Bits*>(to), rows, cols, to_rows);
    return cudaGetLastError();
  });
}

cudaError_t signed_permutation(cudaStream_t stream, size_t item_bytes, const void* w, void* out, int64_t rows,
                               int64_t cols, bool by_column, const int32_t* source, const int8_t* signs) {
  if (rows == 0 || cols == 0) return cudaSuccess;
  return by_width(item_bytes, [&](auto bits) {
    using Bits = decltype(bits);
    signed_permutation_kernel<Bits><<<blocks_for(rows * cols), kThreads, 0, stream>>>(
        static_cast<const Bits*>(w), static_cast<Bits*>(out), rows, cols, by_column, source, signs);
    return cudaGetLastError();
  });
}

cudaError_t add_lower(cudaStream_t stream, const float* part, double* sums, int64_t n) {
  if (n == 0) return cudaSuccess;
  add_lower_kernel<<<blocks_for(n * n), kThreads, 0, stream>>>(part, sums, n);
  return cudaGetLastError();
}

}  // namespace molae::cuda::kernels
