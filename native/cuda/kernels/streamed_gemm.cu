#include "cuda/kernels/chained_launch.cuh"
#include "cuda/kernels/device_block.cuh"
#include "cuda/kernels/launch.h"

// The kernels of decode: what they do is in logic/streamed_gemm.h.
namespace molae::cuda::kernels {
namespace {

// As many blocks as config/tile_choice.h wants of a multiprocessor; with f64 sums one fewer, or they would be spilled.
template <class In>
inline constexpr int kBlocksAtOnce = kStreamBlocks - (sizeof(Sum<In>) == sizeof(double));

template <class In, bool kDual>
__global__ __launch_bounds__(kStreamThreads, kBlocksAtOnce<In>) void streamed_gemm_kernel(
    const __grid_constant__ StreamedGemm<In> args) {
  __shared__ StreamShared<In, kDual> shared;
  const StreamIndex at = stream_index(blockIdx.x, blockIdx.y, blockIdx.z, args.splits);
  // While the kernel before this one ends.
  prefetch_weights<In, kDual>(DeviceBlock(), at, args);
  after_previous();
  streamed_gemm_block<In, kDual>(DeviceBlock(), at, args, shared);
}

template <class In, bool kDual>
__global__ __launch_bounds__(kJoinThreads) void join_splits_kernel(const __grid_constant__ JoinSplits<In> args) {
  after_previous();
  join_splits<In, kDual>(DeviceBlock(), stream_index(blockIdx.x, blockIdx.y, blockIdx.z, 1), args);
}

dim3 grid_of(int64_t row_tiles, int64_t column_blocks, int64_t products) {
  return dim3(static_cast<unsigned>(row_tiles), static_cast<unsigned>(column_blocks), static_cast<unsigned>(products));
}

}  // namespace

template <class In>
cudaError_t streamed_gemm(Chain& chain, const StreamedGemm<In>& args) {
  if (args.row_tiles == 0 || args.max_columns == 0) return cudaSuccess;
  const dim3 grid =
      grid_of(args.row_tiles, ceil_div(args.max_columns, kStreamColumns), int64_t{args.count} * args.splits);
  const auto kernel = args.dual ? streamed_gemm_kernel<In, true> : streamed_gemm_kernel<In, false>;
  return launch_chained(chain, kernel, grid, kStreamThreads, args);
}

template <class In>
cudaError_t join_splits(Chain& chain, const JoinSplits<In>& args) {
  if (args.row_tiles == 0 || args.max_columns == 0) return cudaSuccess;
  const dim3 grid = grid_of(args.row_tiles, ceil_div(args.max_columns, kJoinThreads), args.count);
  const auto kernel = args.dual ? join_splits_kernel<In, true> : join_splits_kernel<In, false>;
  return launch_chained(chain, kernel, grid, kJoinThreads, args);
}

#define MOLAE_INSTANTIATE(In)                                              \
  template cudaError_t streamed_gemm<In>(Chain&, const StreamedGemm<In>&); \
  template cudaError_t join_splits<In>(Chain&, const JoinSplits<In>&);
MOLAE_INSTANTIATE(float)
MOLAE_INSTANTIATE(double)
MOLAE_INSTANTIATE(F16)
MOLAE_INSTANTIATE(BF16)
#undef MOLAE_INSTANTIATE

}  // namespace molae::cuda::kernels
