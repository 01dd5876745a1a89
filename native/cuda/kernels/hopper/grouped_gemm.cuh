#pragma once

#include <algorithm>

#include "cuda/kernels/chained_launch.cuh"
#include "cuda/kernels/hopper/device_group.cuh"
#include "cuda/kernels/launch.h"
#include "cuda/logic/hopper/grouped_gemm.h"

// The kernels of Hopper's tiles: one body (logic/hopper/grouped_gemm.h), one instantiation for each input type and
// tile. Compiled for sm_90a alone: neither wgmma nor setmaxnreg is in any other architecture.
namespace molae::cuda::kernels {

using hopper::HopperGemm;
using hopper::PairedTile;
using hopper::SwappedTile;
using hopper::WideTile;

inline constexpr int kHopperThreads = (1 + hopper::kConsumers) * hopper::kGroupThreads;
// A thread's registers: what the producer gives back goes to the consumers, which hold the sums. Together at most what
// the launch has: 65536 / 384 threads, rounded down to a multiple of 8.
inline constexpr int kProducerRegisters = 72;
inline constexpr int kConsumerRegisters = 216;
static_assert(kProducerRegisters + hopper::kConsumers * kConsumerRegisters <= (1 + hopper::kConsumers) * 168);

// The products of a launch: each by persistent blocks of its own.
template <class In>
struct HopperGemms {
  HopperGemm<In> products[2];
};

template <class Shape>
constexpr size_t hopper_shared_bytes() {
  return sizeof(hopper::TileShared<Shape>) + hopper::kSwizzleBytes;  // to begin at a multiple
}

template <class Shape>
__global__ __launch_bounds__(kHopperThreads,
                             1) void hopper_gemm_kernel(const __grid_constant__ HopperGemms<typename Shape::In> args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using namespace hopper;
  extern __shared__ unsigned char bytes[];
  const uint32_t misplaced = DeviceGroup::address(bytes) % kSwizzleBytes;
  auto& shared = *reinterpret_cast<TileShared<Shape>*>(bytes + (kSwizzleBytes - misplaced) % kSwizzleBytes);
  if (threadIdx.x == 0) {
    initialize<Shape>(DeviceGroup(0), shared);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    DeviceGroup::fence_async();
  }
  __syncthreads();
  const auto& product = args.products[blockIdx.y];
  const auto group = static_cast<int>(threadIdx.x) / kGroupThreads;
  if (group == kConsumers) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kProducerRegisters));
    produce<Shape>(DeviceGroup(0), product, shared, blockIdx.x, gridDim.x);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kConsumerRegisters));
    consume<Shape>(DeviceGroup(group), product, shared, blockIdx.x, gridDim.x);
  }
#endif
}

template <class Shape>
cudaError_t launch_hopper_gemm(Chain& chain, const GroupedGemms<typename Shape::In>& args, int multiprocessors) {
  HopperGemms<typename Shape::In> gemms{};
  for (int i = 0; i < args.count; ++i) {
    gemms.products[i] = {args.products[i], args.row_tiles, args.max_columns, args.dual};
  }
  const auto schedule = hopper::schedule_of<Shape>(gemms.products[0]);
  const int64_t blocks = std::min<int64_t>(multiprocessors, schedule.row_tiles * schedule.column_tiles);
  if (blocks == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(args.count));
  return launch_chained(chain, hopper_gemm_kernel<Shape>, grid, kHopperThreads, gemms, hopper_shared_bytes<Shape>());
}

template <class Shape>
cudaError_t allow_hopper_shared_memory() {
  static_assert(hopper_shared_bytes<Shape>() <= 227 * 1024, "what a GPU of compute capability 9.0 gives a block");
  return cudaFuncSetAttribute(hopper_gemm_kernel<Shape>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(hopper_shared_bytes<Shape>()));
}

template <class In>
cudaError_t prepare_hopper_tiles() {
  for (const cudaError_t error :
       {allow_hopper_shared_memory<SwappedTile<In, 8>>(), allow_hopper_shared_memory<SwappedTile<In, 16>>(),
        allow_hopper_shared_memory<SwappedTile<In, 32>>(), allow_hopper_shared_memory<SwappedTile<In, 64>>(),
        allow_hopper_shared_memory<WideTile<In>>(), allow_hopper_shared_memory<PairedTile<In>>()}) {
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

template <class In>
cudaError_t hopper_gemm_of(Chain& chain, GemmTile tile, const GroupedGemms<In>& args, int multiprocessors) {
  switch (tile) {
    case GemmTile::Hopper8:
      return launch_hopper_gemm<SwappedTile<In, 8>>(chain, args, multiprocessors);
    case GemmTile::Hopper16:
      return launch_hopper_gemm<SwappedTile<In, 16>>(chain, args, multiprocessors);
    case GemmTile::Hopper32:
      return launch_hopper_gemm<SwappedTile<In, 32>>(chain, args, multiprocessors);
    case GemmTile::Hopper64:
      return launch_hopper_gemm<SwappedTile<In, 64>>(chain, args, multiprocessors);
    case GemmTile::Hopper128:
      if (args.dual && !hopper::shares_tokens(args.products[0])) {
        return launch_hopper_gemm<PairedTile<In>>(chain, args, multiprocessors);
      }
      return launch_hopper_gemm<WideTile<In>>(chain, args, multiprocessors);
    default:
      return cudaErrorInvalidValue;
  }
}

// One file each, so that they compile side by side.
cudaError_t prepare_hopper_bf16();
cudaError_t prepare_hopper_f16();

}  // namespace molae::cuda::kernels
