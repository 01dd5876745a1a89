#pragma once

// The code in this folder runs on the GPU and, for the tests, on the host. Functions that both compile are marked.
#ifdef __CUDACC__
#define MOLAE_HD __host__ __device__ __forceinline__
#else
#define MOLAE_HD inline
#endif

#ifdef __CUDA_ARCH__
#define MOLAE_UNROLL _Pragma("unroll")
#define MOLAE_ROLLED _Pragma("unroll 1")
#else
#define MOLAE_UNROLL
#define MOLAE_ROLLED
#endif
