#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/kernels/thread_variable.cuh"
#include "cuda/logic/number.h"

namespace molae::cuda {

// The GPU's side of logic/host_warp.h: the calling thread is the one lane that it looks after.
class DeviceWarp {
 public:
  __device__ __forceinline__ int first_thread() const { return static_cast<int>(threadIdx.x) / 32 * 32; }

  template <class Phase>
  __device__ __forceinline__ void each_lane(Phase phase) const {
    phase(lane());
  }
  __device__ __forceinline__ void sync() const { __syncwarp(); }

  template <class T>
  using Local = ThreadVariable<T>;

  template <class Address, class Registers>
  static __device__ __forceinline__ void load_matrices(Address address, Registers registers) {
    uint32_t* to = registers(lane());
    const auto from = static_cast<uint32_t>(__cvta_generic_to_shared(address(lane())));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from));
  }

  template <class In, class Sums, class Left, class Right>
  static __device__ __forceinline__ void multiply_add(Sums sums, Left left, Right right) {
    float* d = sums(lane());
    const uint32_t* a = left(lane());
    const uint32_t* b = right(lane());
    if constexpr (std::is_same_v<In, BF16>) {
      asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
          "{%0, %1, %2, %3};"
          : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    } else {
      static_assert(std::is_same_v<In, F16>);
      asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
          "{%0, %1, %2, %3};"
          : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
  }

 private:
  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % 32; }
};

}  // namespace molae::cuda
