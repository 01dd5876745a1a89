#include <cstdint>

#include "cuda/kernels/device_block.cuh"
#include "cuda/kernels/launch.h"
#include "cuda/logic/attention.h"
#include "cuda/logic/distributions.h"
#include "cuda/logic/elementwise.h"
#include "cuda/logic/rms_norm.h"
#include "cuda/logic/rotary.h"
#include "cuda/logic/streamed_linear.h"
#include "cuda/logic/token_rows.h"

// The kernels of the decoder: what they do is in logic/.
namespace molae::cuda::kernels {
namespace {

template <class Kernel>
__global__ __launch_bounds__(Kernel::kThreads) void decoder_kernel(const __grid_constant__ Kernel kernel) {
  __shared__ typename Kernel::Shared shared;
  kernel.run(DeviceBlock(), shared);
}

}  // namespace

template <class Kernel>
cudaError_t launch(cudaStream_t stream, const Kernel& kernel) {
  const int64_t blocks = kernel.blocks();
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  decoder_kernel<Kernel><<<static_cast<unsigned>(blocks), Kernel::kThreads, 0, stream>>>(kernel);
  return cudaGetLastError();
}

#define MOLAE_INSTANTIATE(...) template cudaError_t launch<__VA_ARGS__>(cudaStream_t, const __VA_ARGS__&);
MOLAE_INSTANTIATE(GatherRows)
MOLAE_INSTANTIATE(CopyHeadColumns)
MOLAE_INSTANTIATE(RmsNorm)
MOLAE_INSTANTIATE(Rotary)
MOLAE_INSTANTIATE(Attention)
MOLAE_INSTANTIATE(JoinAttention)
MOLAE_INSTANTIATE(AddTo)
MOLAE_INSTANTIATE(AddBias)
MOLAE_INSTANTIATE(SplitInTwo)
MOLAE_INSTANTIATE(CrossEntropy)
MOLAE_INSTANTIATE(CompareDistributions)
MOLAE_INSTANTIATE(StreamedLinear<float, 1>)
MOLAE_INSTANTIATE(StreamedLinear<float, kStreamedRows>)
MOLAE_INSTANTIATE(StreamedLinear<BF16, 1>)
MOLAE_INSTANTIATE(StreamedLinear<BF16, kStreamedRows>)
MOLAE_INSTANTIATE(StreamedLinear<F16, 1>)
MOLAE_INSTANTIATE(StreamedLinear<F16, kStreamedRows>)
#undef MOLAE_INSTANTIATE

}  // namespace molae::cuda::kernels
