#pragma once

namespace molae::cpu {

// Before the first call to BLAS: has OpenBLAS take the kernels for the instructions that we use. It knows processors by
// their model numbers, and gives those that are newer than itself the kernels of 2004: sgemm on a processor with
// AVX-512 at a fifth of its speed was seen. OPENBLAS_CORETYPE, where it is set, is left to do what it does.
void choose_blas_kernels();

}  // namespace molae::cpu
