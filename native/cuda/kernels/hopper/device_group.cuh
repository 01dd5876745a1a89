#pragma once

#include <cuda_pipeline_primitives.h>

#include "cuda/kernels/hopper/wgmma.cuh"
#include "cuda/kernels/thread_variable.cuh"
#include "cuda/logic/hopper/ring.h"
#include "cuda/logic/hopper/weight_map.h"

// A warpgroup of the GPU, for logic/hopper/grouped_gemm.h: the calling thread's part of what the group does.
namespace molae::cuda::hopper {

class DeviceGroup {
 public:
  __device__ __forceinline__ explicit DeviceGroup(int index) : index_(index) {}

  // Which consumer; of no meaning to the producer.
  __device__ __forceinline__ int index() const { return index_; }

  template <class T>
  using Local = ThreadVariable<T>;

  template <class Phase>
  __device__ __forceinline__ void each_thread(Phase phase) const {
    phase(thread());
  }
  template <class Phase>
  __device__ __forceinline__ void one_thread(Phase phase) const {
    if (thread() == 0) phase();
  }

  static __device__ __forceinline__ uint32_t address(const void* shared) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  }

  static __device__ __forceinline__ void after_previous() { kernels::after_previous(); }

  // For what may have been written since this multiprocessor's own cache was last emptied.
  template <class T>
  static __device__ __forceinline__ T load_from_l2(const T* from) {
    return __ldcg(from);
  }

  // --- Barriers

  static __device__ __forceinline__ void initialize(Barrier& barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address(&barrier)), "r"(arrivals) : "memory");
  }
  static __device__ __forceinline__ void arrive(Barrier& barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address(&barrier)) : "memory");
  }
  static __device__ __forceinline__ void arrive_by_warp(Barrier& barrier) {
    if (threadIdx.x % 32 == 0) arrive(barrier);
  }
  static __device__ __forceinline__ void arrive_expecting(Barrier& barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address(&barrier)), "r"(bytes)
                 : "memory");
  }
  // Until the phase of this parity is complete.
  static __device__ __forceinline__ void wait(Barrier& barrier, uint32_t parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@done bra ready;\n"
        "bra again;\n"
        "ready:\n"
        "}\n" ::"r"(address(&barrier)),
        "r"(parity)
        : "memory");
    __syncwarp();  // what comes next may want all of a warp's threads together
  }

  // --- Copies

  // cp.async; the bytes beyond `bytes` become zero.
  static __device__ __forceinline__ void copy16(void* to, const void* from, int bytes) {
    __pipeline_memcpy_async(to, from, 16, 16 - bytes);
  }
  // Arrives at the barrier when all that this thread has copied so far is there. noinc: as one of the arrivals that the
  // barrier was initialized with.
  static __device__ __forceinline__ void arrive_after_copies(Barrier& barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(address(&barrier)) : "memory");
  }
  static __device__ __forceinline__ void await_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }
  // What threads have written to shared memory, as far as this one has waited for it, becomes visible to the tensor
  // cores and the copy engine.
  static __device__ __forceinline__ void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

  // Maps are copied to the GPU by the host, into memory that may have held other maps before.
  static __device__ __forceinline__ void acquire_map(const WeightMap* map) {
    asm volatile("fence.proxy.tensormap::generic.acquire.sys [%0], 128;" ::"l"(map) : "memory");
  }
  static __device__ __forceinline__ void copy_box(const WeightMap* map, int32_t inner, int32_t row, void* to,
                                                  Barrier& barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], "
        "[%4];" ::"r"(address(to)),
        "l"(map), "r"(inner), "r"(row), "r"(address(&barrier))
        : "memory");
  }

  // --- Products

  // The compiler must not move the sums while the tensor cores have them.
  template <class Sums>
  static __device__ __forceinline__ void begin_products(Local<Sums>& sums) {
    pin(sums);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
  }
  template <class In, int kColumns, int kFirst, class Sums>
  static __device__ __forceinline__ void multiply(Local<Sums>& sums, uint64_t a, uint64_t b) {
    Wgmma<In, kColumns>::multiply(sums[0].values + kFirst, a, b);
  }
  static __device__ __forceinline__ void commit_products() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
  }
  // Until at most the newest kPending groups are under way.
  template <int kPending, class Sums>
  static __device__ __forceinline__ void await_products(Local<Sums>& sums) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
    pin(sums);
  }

 private:
  static __device__ __forceinline__ int thread() { return static_cast<int>(threadIdx.x) % kGroupThreads; }
  template <class Sums>
  static __device__ __forceinline__ void pin(Local<Sums>& sums) {
#pragma unroll
    for (float& sum : sums[0].values) asm volatile("" : "+f"(sum)::"memory");
  }

  int index_;
};

}  // namespace molae::cuda::hopper
