#pragma once

namespace molae::cpu {

// OpenBLAS takes memory of its own for each thread that multiplies, with its first product, and where there is none it
// tries for ever. Where the address space is limited (ulimit -v) this has it take all that so many threads need, so
// that no later product has to. Throws OutOfMemory where it would not get it.
void reserve_blas_memory(int threads);

}  // namespace molae::cpu
