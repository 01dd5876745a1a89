#include <algorithm>

#include "cuda/kernels/launch.h"
#include "cuda/logic/number.h"

namespace molae::cuda::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 4096;

// One number a thread becomes one number a block, by halving: a fixed order.
template <class T, class Combine>
__device__ T reduce_block(T value, Combine combine) {
  __shared__ T values[kThreads];
  values[threadIdx.x] = value;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) values[threadIdx.x] = combine(values[threadIdx.x], values[threadIdx.x + half]);
    __syncthreads();
  }
  return values[0];
}

// All exponent bits set: NaN or infinity.
template <class Bits>
__global__ void find_non_finite_kernel(const Bits* data, int64_t count, Bits exponent, unsigned long long* result) {
  unsigned long long found = ~0ull;
  const int64_t step = gridDim.x * static_cast<int64_t>(kThreads);
  for (int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x; i < count; i += step) {
    if ((data[i] & exponent) == exponent) {
      found = static_cast<unsigned long long>(i);
      break;
    }
  }
  found = reduce_block(found, [](unsigned long long a, unsigned long long b) { return a < b ? a : b; });
  if (threadIdx.x == 0 && found != ~0ull) atomicMin(result, found);
}

template <class T>
__global__ void norm_parts_kernel(const T* data, int64_t count, double* parts) {
  double sum = 0;
  const int64_t step = static_cast<int64_t>(kNormParts) * kThreads;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x; i < count; i += step) {
    const double value = Convert<double, T>::of(data[i]);
    sum += value * value;
  }
  sum = reduce_block(sum, [](double a, double b) { return a + b; });
  if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

__global__ void norm_total_kernel(const double* parts, double* result) {
  double sum = 0;
  for (int i = threadIdx.x; i < kNormParts; i += kThreads) sum += parts[i];
  sum = reduce_block(sum, [](double a, double b) { return a + b; });
  if (threadIdx.x == 0) *result = sum;
}

template <class Bits>
cudaError_t find_bits(cudaStream_t stream, const void* data, int64_t count, Bits exponent, unsigned long long* result) {
  const auto blocks = static_cast<unsigned>(std::min(kMaxBlocks, (count + kThreads - 1) / kThreads));
  find_non_finite_kernel<Bits>
      <<<blocks, kThreads, 0, stream>>>(static_cast<const Bits*>(data), count, exponent, result);
  return cudaGetLastError();
}

template <class T>
cudaError_t norm_of(cudaStream_t stream, const void* data, int64_t count, double* parts, double* result) {
  norm_parts_kernel<T><<<kNormParts, kThreads, 0, stream>>>(static_cast<const T*>(data), count, parts);
  norm_total_kernel<<<1, kThreads, 0, stream>>>(parts, result);
  return cudaGetLastError();
}

}  // namespace

cudaError_t find_non_finite(cudaStream_t stream, DType dtype, const void* data, int64_t count,
                            unsigned long long* result) {
  const cudaError_t cleared = cudaMemsetAsync(result, 0xff, sizeof *result, stream);
  if (cleared != cudaSuccess || count == 0) return cleared;
  switch (dtype) {
    case DType::F32:
      return find_bits<uint32_t>(stream, data, count, 0x7f800000u, result);
    case DType::F64:
      return find_bits<uint64_t>(stream, data, count, 0x7ff0000000000000ull, result);
    case DType::BF16:
      return find_bits<uint16_t>(stream, data, count, 0x7f80u, result);
    case DType::F16:
      return find_bits<uint16_t>(stream, data, count, 0x7c00u, result);
    default:
      return cudaSuccess;  // every integer is finite
  }
}

cudaError_t squared_norm(cudaStream_t stream, DType dtype, const void* data, int64_t count, double* parts,
                         double* result) {
  switch (dtype) {
    case DType::F32:
      return norm_of<float>(stream, data, count, parts, result);
    case DType::F64:
      return norm_of<double>(stream, data, count, parts, result);
    case DType::BF16:
      return norm_of<BF16>(stream, data, count, parts, result);
    case DType::F16:
      return norm_of<F16>(stream, data, count, parts, result);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace molae::cuda::kernels
