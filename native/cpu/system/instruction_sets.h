#pragma once

#include "cpu/system/processor.h"

// Kernels are written as templates over the width of vectors, which clones of one function (multiversion.h) cannot
// differ in: each is compiled once for each of Instructions, as a function with one of these attributes.
#define MOLAE_PLAIN
#if defined(__x86_64__)
#define MOLAE_AVX2 __attribute__((target("avx2,fma,f16c")))
#define MOLAE_AVX512 __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,fma")))
#endif

// Of three kernels the one for the instructions in use. On other processors only the first one need exist.
#if defined(__x86_64__)
#define MOLAE_BEST_OF(plain, avx2, avx512) ::molae::cpu::best_of(plain, avx2, avx512)
#else
#define MOLAE_BEST_OF(plain, avx2, avx512) (plain)
#endif

namespace molae::cpu {

template <class Kernel>
const Kernel& best_of(const Kernel& plain, const Kernel& avx2, const Kernel& avx512) {
  switch (instructions()) {
    case Instructions::Avx512:
      return avx512;
    case Instructions::Avx2:
      return avx2;
    case Instructions::Plain:
      break;
  }
  return plain;
}

}  // namespace molae::cpu
