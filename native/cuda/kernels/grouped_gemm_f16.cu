#include "cuda/kernels/grouped_gemm.cuh"

namespace molae::cuda::kernels {

template <>
cudaError_t grouped_gemm<F16>(Chain& chain, GemmTile tile, const GroupedGemms<F16>& args) {
  return tensor_core_gemm(chain, tile, args);
}

cudaError_t prepare_f16() { return prepare_tensor_core_tiles<F16>(); }

}  // namespace molae::cuda::kernels
