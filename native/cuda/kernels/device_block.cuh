#pragma once

#include <cuda_pipeline_primitives.h>

#include "cuda/kernels/device_warp.cuh"
#include "cuda/kernels/thread_variable.cuh"
#include "cuda/logic/number.h"

namespace molae::cuda {

// The GPU's side of logic/host_block.h: a phase is the calling thread, and a barrier behind it.
class DeviceBlock {
 public:
  __device__ __forceinline__ explicit DeviceBlock(int index = static_cast<int>(blockIdx.x)) : index_(index) {}

  __device__ __forceinline__ int index() const { return index_; }
  __device__ __forceinline__ int threads() const { return static_cast<int>(blockDim.x); }

  template <class Phase>
  __device__ __forceinline__ void each_thread(Phase phase) const {
    phase(static_cast<int>(threadIdx.x));
    __syncthreads();
  }
  template <class Phase>
  __device__ __forceinline__ void each_thread_unsynced(Phase phase) const {
    phase(static_cast<int>(threadIdx.x));
  }

  // What a warp does together, without a barrier behind it.
  template <class Phase>
  __device__ __forceinline__ void each_warp(Phase phase) const {
    phase(DeviceWarp());
  }

  template <class T>
  using Local = ThreadVariable<T>;

  // 16 bytes that nobody reads again: the first to leave the caches.
  template <class T>
  static __device__ __forceinline__ T load_once(const void* from) {
    return bits_as<T>(__ldcs(static_cast<const uint4*>(from)));
  }

  // For what may have been written since this multiprocessor's own cache was last emptied.
  template <class T>
  static __device__ __forceinline__ T load_from_l2(const T* from) {
    return __ldcg(from);
  }
  static __device__ __forceinline__ void prefetch(const void* from) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
  }

  // cp.async; the bytes beyond `bytes` become zero.
  static __device__ __forceinline__ void copy16(void* to, const void* from, int bytes) {
    __pipeline_memcpy_async(to, from, 16, 16 - bytes);
  }
  static __device__ __forceinline__ void commit_copies() { __pipeline_commit(); }
  template <int kPending>
  static __device__ __forceinline__ void await_copies() {
    __pipeline_wait_prior(kPending);
  }

 private:
  int index_;
};

}  // namespace molae::cuda
