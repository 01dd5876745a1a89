#include "cuda/kernels/grouped_gemm.cuh"

namespace molae::cuda::kernels {

template <>
cudaError_t grouped_gemm<BF16>(Chain& chain, GemmTile tile, const GroupedGemms<BF16>& args) {
  return tensor_core_gemm(chain, tile, args);
}

cudaError_t prepare_bf16() { return prepare_tensor_core_tiles<BF16>(); }

}  // namespace molae::cuda::kernels
