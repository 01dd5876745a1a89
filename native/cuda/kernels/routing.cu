#include "cuda/kernels/chained_launch.cuh"
#include "cuda/kernels/device_block.cuh"
#include "cuda/kernels/launch.h"
#include "cuda/logic/sort.h"

namespace molae::cuda::kernels {
namespace {

__global__ __launch_bounds__(kRouterThreads) void route_kernel(const __grid_constant__ RouterArgs args) {
  __shared__ RouterShared shared;
  extern __shared__ float floats[];
  route_token(DeviceBlock(), args, shared, floats);
}

__global__ __launch_bounds__(kSortThreads) void count_kernel(const __grid_constant__ RoutingPlan plan) {
  count_chunk(DeviceBlock(), plan);
}

// One block is all there is: it may have the registers of a multiprocessor.
__global__ __launch_bounds__(kScanThreads, 1) void plan_kernel(const __grid_constant__ RoutingPlan plan) {
  __shared__ PlanShared shared;
  after_previous();
  plan_rows(DeviceBlock(), plan, shared);
}

__global__ __launch_bounds__(kSortThreads) void scatter_kernel(const __grid_constant__ RoutingPlan plan) {
  after_previous();
  scatter_chunk(DeviceBlock(), plan);
}

__global__ __launch_bounds__(kScanThreads) void sort_chunk_kernel(const __grid_constant__ RoutingPlan plan) {
  __shared__ PlanShared shared;
  sort_chunk(DeviceBlock(), plan, shared);
}

template <class In>
__global__ __launch_bounds__(kCombineThreads) void combine_latent_kernel(
    const __grid_constant__ LatentCombine<In> args) {
  after_previous();
  combine_latent_row(DeviceBlock(), args);
}

// What a multiprocessor is to have at least. Told of no number, ptxas goes for more and spills registers.
constexpr int kOutputBlocksAtOnce = 16;

template <class In>
__global__ __launch_bounds__(kOutputThreads, kOutputBlocksAtOnce) void combine_output_kernel(
    const __grid_constant__ OutputCombine<In> args) {
  after_previous();
  combine_output(DeviceBlock(), args);
}

template <class In>
__global__ __launch_bounds__(kScaleThreads) void shared_scale_kernel(const __grid_constant__ SharedScale<In> args) {
  __shared__ ScaleShared<In> shared;
  after_previous();
  shared_expert_scale(DeviceBlock(), args, shared);
}

}  // namespace

cudaError_t route(cudaStream_t stream, const RouterArgs& args, int64_t tokens) {
  if (tokens == 0) return cudaSuccess;
  const size_t bytes = router_scratch_floats(args.experts, args.num_groups) * sizeof(float);
  route_kernel<<<static_cast<unsigned>(tokens), kRouterThreads, bytes, stream>>>(args);
  return cudaGetLastError();
}

// The first kernel of the chain waits for whatever is before it in the stream.
cudaError_t sort_rows(Chain& chain, const RoutingPlan& plan) {
  const auto chunks = static_cast<unsigned>(ceil_div(plan.tokens, kSortTokens));
  if (chunks == 0) return cudaSuccess;
  cudaError_t error;
  if (chunks == 1) {  // two launches less
    sort_chunk_kernel<<<1, kScanThreads, 0, chain.stream>>>(plan);
    error = cudaGetLastError();
  } else {
    count_kernel<<<chunks, kSortThreads, 0, chain.stream>>>(plan);
    error = cudaGetLastError();
    if (error == cudaSuccess) error = launch_chained(chain, plan_kernel, dim3(1), kScanThreads, plan);
    if (error == cudaSuccess) error = launch_chained(chain, scatter_kernel, dim3(chunks), kSortThreads, plan);
  }
  chain.overlap.sorted();
  return error;
}

template <class In>
cudaError_t combine_latent(Chain& chain, const LatentCombine<In>& args, int64_t latent_rows) {
  if (latent_rows == 0) return cudaSuccess;
  return launch_chained(chain, combine_latent_kernel<In>, dim3(static_cast<unsigned>(latent_rows)), kCombineThreads,
                        args);
}

template <class In>
cudaError_t combine_output(Chain& chain, const OutputCombine<In>& args) {
  const int64_t blocks = args.plan.tokens * output_blocks_per_token(args.hidden_size);
  if (blocks == 0) return cudaSuccess;
  return launch_chained(chain, combine_output_kernel<In>, dim3(static_cast<unsigned>(blocks)), kOutputThreads, args);
}

template <class In>
cudaError_t shared_expert_scale(Chain& chain, const SharedScale<In>& args, int64_t tokens) {
  if (tokens == 0) return cudaSuccess;
  return launch_chained(chain, shared_scale_kernel<In>, dim3(static_cast<unsigned>(tokens)), kScaleThreads, args);
}

#define MOLAE_INSTANTIATE(In)                                                         \
  template cudaError_t combine_latent<In>(Chain&, const LatentCombine<In>&, int64_t); \
  template cudaError_t combine_output<In>(Chain&, const OutputCombine<In>&);          \
  template cudaError_t shared_expert_scale<In>(Chain&, const SharedScale<In>&, int64_t);
MOLAE_INSTANTIATE(float)
MOLAE_INSTANTIATE(double)
MOLAE_INSTANTIATE(F16)
MOLAE_INSTANTIATE(BF16)
#undef MOLAE_INSTANTIATE

}  // namespace molae::cuda::kernels
