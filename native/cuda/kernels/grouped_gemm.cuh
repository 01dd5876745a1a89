#pragma once

#include "cuda/config/mma_tiles.h"
#include "cuda/kernels/chained_launch.cuh"
#include "cuda/kernels/device_block.cuh"
#include "cuda/kernels/launch.h"

// The grouped product's kernels: one body (logic/grouped_gemm.h), one instantiation for each input type and tile.
namespace molae::cuda::kernels {

template <class Math, bool kDual>
__global__ __launch_bounds__(Math::kThreads,
                             1) void grouped_gemm_kernel(const __grid_constant__ GroupedGemms<typename Math::In> args) {
  extern __shared__ __align__(128) unsigned char bytes[];
  const TileIndex at = tile_index<Math>(args, static_cast<int>(blockIdx.x));
  const auto& product = args.products[kDual ? 0 : blockIdx.y];
  prefetch_weights<Math>(DeviceBlock(), at, product);  // while the kernel before this one ends
  after_previous();
  grouped_gemm_tile<Math, kDual>(DeviceBlock(), at, product, *reinterpret_cast<GemmShared<Math>*>(bytes));
}

template <class Math>
cudaError_t launch_grouped_gemm(Chain& chain, const GroupedGemms<typename Math::In>& args) {
  if (args.row_tiles == 0 || args.max_columns == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(args.row_tiles * column_blocks<Math>(args)), static_cast<unsigned>(args.count));
  const auto kernel = args.dual ? grouped_gemm_kernel<Math, true> : grouped_gemm_kernel<Math, false>;
  return launch_chained(chain, kernel, grid, Math::kThreads, args, sizeof(GemmShared<Math>));
}

template <class Math>
cudaError_t allow_shared_memory() {
  constexpr int bytes = static_cast<int>(sizeof(GemmShared<Math>));
  static_assert(bytes <= 99 * 1024, "the least that a GPU of compute capability 8.x gives a block");
  const auto attribute = cudaFuncAttributeMaxDynamicSharedMemorySize;
  const cudaError_t error = cudaFuncSetAttribute(grouped_gemm_kernel<Math, true>, attribute, bytes);
  if (error != cudaSuccess) return error;
  return cudaFuncSetAttribute(grouped_gemm_kernel<Math, false>, attribute, bytes);
}

template <class In>
cudaError_t prepare_tensor_core_tiles() {
  for (const cudaError_t error : {allow_shared_memory<SmallTile<In>>(), allow_shared_memory<MediumTile<In>>(),
                                  allow_shared_memory<LargeTile<In>>()}) {
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

template <class In>
cudaError_t tensor_core_gemm(Chain& chain, GemmTile tile, const GroupedGemms<In>& args) {
  switch (tile) {
    case GemmTile::Small:
      return launch_grouped_gemm<SmallTile<In>>(chain, args);
    case GemmTile::Medium:
      return launch_grouped_gemm<MediumTile<In>>(chain, args);
    case GemmTile::Large:
      return launch_grouped_gemm<LargeTile<In>>(chain, args);
    default:
      return cudaErrorInvalidValue;
  }
}

// One file each, so that they compile side by side.
cudaError_t prepare_bf16();
cudaError_t prepare_f16();
cudaError_t prepare_simt();

}  // namespace molae::cuda::kernels
