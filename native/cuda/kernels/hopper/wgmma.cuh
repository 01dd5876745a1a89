#pragma once

#include <cstdint>

#include "cuda/logic/hopper/fragment.h"
#include "cuda/logic/number.h"

// wgmma: 64 rows by N columns by 16 of the inner dimension, halves into f32, both operands in shared memory with the
// inner dimension in rows (logic/hopper/matrix_descriptor.h). All four warps of a warpgroup together.
namespace molae::cuda::hopper {

template <class In, int kColumns>
struct Wgmma;

// The names of the first 4, 8, ... 128 operands, and the operands: consecutive sums.
#define MOLAE_NAMES_4 "%0, %1, %2, %3"
#define MOLAE_NAMES_8 \
  MOLAE_NAMES_4       \
  ", %4, %5, %6, %7"
#define MOLAE_NAMES_16 \
  MOLAE_NAMES_8        \
  ", %8, %9, %10, %11, %12, %13, %14, %15"
#define MOLAE_NAMES_32 \
  MOLAE_NAMES_16       \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define MOLAE_NAMES_64                                                               \
  MOLAE_NAMES_32                                                                     \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define MOLAE_NAMES_128                                                                          \
  MOLAE_NAMES_64                                                                                 \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"             \
  ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"             \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
  ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define MOLAE_SUMS_4(s) "+f"((s)[0]), "+f"((s)[1]), "+f"((s)[2]), "+f"((s)[3])
#define MOLAE_SUMS_8(s) MOLAE_SUMS_4(s), MOLAE_SUMS_4((s) + 4)
#define MOLAE_SUMS_16(s) MOLAE_SUMS_8(s), MOLAE_SUMS_8((s) + 8)
#define MOLAE_SUMS_32(s) MOLAE_SUMS_16(s), MOLAE_SUMS_16((s) + 16)
#define MOLAE_SUMS_64(s) MOLAE_SUMS_32(s), MOLAE_SUMS_32((s) + 32)
#define MOLAE_SUMS_128(s) MOLAE_SUMS_64(s), MOLAE_SUMS_64((s) + 64)

// The last two operands: the descriptors of A and B. The predicate: what is multiplied is added to the sums.
#define MOLAE_WGMMA(In, type, columns, count, a, b)                                                      \
  template <>                                                                                            \
  struct Wgmma<In, columns> {                                                                            \
    static_assert(fragment_sums(columns) == count);                                                      \
    static __device__ __forceinline__ void multiply(float* sums, uint64_t left, uint64_t right) {        \
      asm volatile(                                                                                      \
          "{\n"                                                                                          \
          ".reg .pred add;\n"                                                                            \
          "setp.eq.u32 add, 0, 0;\n"                                                                     \
          "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." type "." type " {" MOLAE_NAMES_##count \
          "}, " a ", " b                                                                                 \
          ", add, 1, 1, 0, 0;\n"                                                                         \
          "}\n"                                                                                          \
          : MOLAE_SUMS_##count(sums)                                                                     \
          : "l"(left), "l"(right));                                                                      \
    }                                                                                                    \
  };

#define MOLAE_WGMMA_OF_BOTH(columns, count, a, b) \
  MOLAE_WGMMA(BF16, "bf16", columns, count, a, b) \
  MOLAE_WGMMA(F16, "f16", columns, count, a, b)

MOLAE_WGMMA_OF_BOTH(8, 4, "%4", "%5")
MOLAE_WGMMA_OF_BOTH(16, 8, "%8", "%9")
MOLAE_WGMMA_OF_BOTH(32, 16, "%16", "%17")
MOLAE_WGMMA_OF_BOTH(64, 32, "%32", "%33")
MOLAE_WGMMA_OF_BOTH(128, 64, "%64", "%65")
MOLAE_WGMMA_OF_BOTH(256, 128, "%128", "%129")

#undef MOLAE_WGMMA_OF_BOTH
#undef MOLAE_WGMMA
#undef MOLAE_SUMS_128
#undef MOLAE_NAMES_128
#undef MOLAE_SUMS_64
#undef MOLAE_NAMES_64
#undef MOLAE_SUMS_32
#undef MOLAE_NAMES_32
#undef MOLAE_SUMS_16
#undef MOLAE_NAMES_16
#undef MOLAE_SUMS_8
#undef MOLAE_NAMES_8
#undef MOLAE_SUMS_4
#undef MOLAE_NAMES_4

}  // namespace molae::cuda::hopper
