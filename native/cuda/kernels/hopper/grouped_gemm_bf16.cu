#include "cuda/kernels/hopper/grouped_gemm.cuh"

namespace molae::cuda::kernels {

template <>
cudaError_t hopper_gemm<BF16>(Chain& chain, GemmTile tile, const GroupedGemms<BF16>& args, int multiprocessors) {
  return hopper_gemm_of(chain, tile, args, multiprocessors);
}

cudaError_t prepare_hopper_bf16() { return prepare_hopper_tiles<BF16>(); }

cudaError_t prepare_hopper_gemm() {
  const cudaError_t error = prepare_hopper_bf16();
  return error != cudaSuccess ? error : prepare_hopper_f16();
}

}  // namespace molae::cuda::kernels
