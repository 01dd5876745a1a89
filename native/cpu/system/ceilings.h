#pragma once

namespace molae::cpu {

// What this machine can do at best with a number of threads: what speeds are held against.
struct Ceilings {
  double fma_gflops;    // independent f32 fused multiply-adds on registers
  double sgemm_gflops;  // OpenBLAS sgemm 2048^3, cut into one part a thread
  double read_gbps;     // summing a buffer much larger than the caches
};

// One pass of each, a tenth of a second on two cores: to be measured again and again, in turns with what is held
// against it. The first call also makes 256 MB to 1 GB of memory come, which it keeps for the next ones. Nothing else
// may use OpenBLAS meanwhile: call it on the CPU device's queue.
Ceilings measure_ceilings(int threads);

}  // namespace molae::cpu
