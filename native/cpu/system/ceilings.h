#pragma once

namespace molae::cpu {

// What this machine can do at best with a number of threads: what speeds are held against.
struct Ceilings {
  double fma_gflops;  // independent f32 fused multiply-adds on registers: the best of several bursts
  // OpenBLAS sgemm 2048^3, the median of several calls, as what is compared with it is a median: of two ways to spread
  // it over threads the faster one.
  double sgemm_gflops;
  double read_gbps;  // summing a buffer much larger than the caches: the best of several passes
};

// Takes a second or two, and keeps 256 MB to 1 GB for the next time. Sets the number of threads of OpenBLAS while it
// runs, so nothing else may use that: call it on the CPU device's queue.
Ceilings measure_ceilings(int threads);

}  // namespace molae::cpu
