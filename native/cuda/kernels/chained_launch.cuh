#pragma once

#include <cuda_runtime.h>

#include "cuda/kernels/launch.h"

// Programmatic dependent launch. A kernel of the chain may begin, on multiprocessors that have room, when every block
// of the one before it has called after_previous() or ended. It waits there until that one has ended and its results
// can be seen. As blocks call it before they write or end anything, a kernel that begins finds all but the last kernel
// before it complete. So before the wait a kernel may read
//   - weights, and the tables of them, which no kernel writes;
//   - the tile map: Overlap (logic/overlap.h) sees to it that the kernel which made it is never the last one before.
//     From L2, load_from_l2(): what a multiprocessor's own cache has may be as old as the kernel that it last ran.
// and nothing else; and it may write nothing.
namespace molae::cuda::kernels {

// To be called by every thread. Without the attribute below there is nothing to wait for.
__device__ __forceinline__ void after_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Launches a kernel that calls after_previous().
template <class Args>
cudaError_t launch_chained(Chain& chain, void (*kernel)(Args), dim3 grid, int threads, const Args& args,
                           size_t shared_bytes = 0) {
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = chain.stream;
  config.attrs = &overlap;
  config.numAttrs = chain.overlap.next() ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, args);
}

}  // namespace molae::cuda::kernels
