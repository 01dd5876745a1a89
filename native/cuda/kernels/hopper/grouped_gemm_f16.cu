#include "cuda/kernels/hopper/grouped_gemm.cuh"

namespace molae::cuda::kernels {

template <>
cudaError_t hopper_gemm<F16>(Chain& chain, GemmTile tile, const GroupedGemms<F16>& args, int multiprocessors) {
  return hopper_gemm_of(chain, tile, args, multiprocessors);
}

cudaError_t prepare_hopper_f16() { return prepare_hopper_tiles<F16>(); }

}  // namespace molae::cuda::kernels
